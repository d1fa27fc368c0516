"""Sets when the mode `auto` reasons: `python -m src.gate <folder> --output mine/configs/mode/auto.yaml`.

The folder is `<benchmark>` in the output of an evaluation that has the modes `direct` and `reasoning`, on a
collection that is not the one to report: `src.evaluate part=validation modes=[direct,reasoning] ...`
"""

from collections.abc import Sequence
from pathlib import Path

from search_r3.cli.last_resort import Parser, run_command
from search_r3.errors import UsageError
from search_r3.evaluation.gate import write_gate
from search_r3.folders import folder_for
from search_r3.shipped import as_called

DEFAULT = Path("mine") / "configs" / "mode" / "auto.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the mode's file and prints it.

    Raises:
        UsageError: As `write_gate`.
    """
    parser = Parser(prog="python -m src.gate", description=__doc__)
    parser.add_argument("evaluation", type=Path, help="of one benchmark, with direct/ and reasoning/")
    parser.add_argument("--output", type=Path, default=DEFAULT, help=f"{DEFAULT} by default")
    arguments = parser.parse_args(argv)
    output = arguments.output
    if (output.name, output.parent.name) != ("auto.yaml", "mode"):
        raise UsageError(f"--output={output}: must end in mode/auto.yaml, in a folder for --config-dir")
    with folder_for(output.parent, "--output"):  # refused before the evaluation is read
        write_gate(arguments.evaluation, output)
    print(output.read_text(encoding="utf-8"), end="")
    command = as_called("python -m src.evaluate", "--config-dir", output.parent.parent)
    print(f"next: {command} modes=[direct,auto,reasoning] ...")
    return 0


if __name__ == "__main__":
    run_command(main)
