"""Makes the folder of `data=entailmentbank`: `python -m src.entailmentbank <clone> --output <folder>`.

The clone is of github.com/allenai/entailment_bank, at the commit that `search_r3.data.entailmentbank_source`
pins.
"""

from collections.abc import Sequence
from pathlib import Path

from search_r3.cli.last_resort import Parser, run_command
from search_r3.data.entailmentbank_source import REPOSITORY, build
from search_r3.shipped import as_called

DEFAULT = Path("data") / "entailmentbank"


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the folder, or says that it is there.

    Raises:
        UsageError, DataError: As `build`.
    """
    parser = Parser(prog="python -m src.entailmentbank", description=__doc__)
    parser.add_argument("clone", type=Path, help=f"a clone of {REPOSITORY}")
    parser.add_argument("--output", type=Path, default=DEFAULT, help=f"{DEFAULT} by default")
    arguments = parser.parse_args(argv)
    is_new = build(arguments.clone, arguments.output)
    print(f"{arguments.output}: {'made' if is_new else 'is there already'}, every file as pinned")
    print(f"next: {as_called('make science', f'SCIENCE_DIR={arguments.output}')}")
    return 0


if __name__ == "__main__":
    run_command(main)
