"""Brings model folders of before to the present state: `python -m src.upgrade <folder> ...`.

Every folder gets the checksums of its files, by which damage is noticed from then on: they are of what the
files hold now, so compare with another copy first where there is one. A folder of format 1 also gets the
prompts as they are rendered, and a new README.md. Weights and tokenizer stay as they are, and so do the
vectors. Folders of before also open without this. Of a folder that has checksums the files are compared.
"""

from collections.abc import Sequence

from search_r3.cli.last_resort import Parser, run_command
from search_r3.errors import UsageError
from search_r3.models.folder import upgrade_folder

DONE = (
    "upgraded; its checksums are of what the files hold now, and say nothing of damage before: compare a "
    "result that you know, or another copy"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Brings folders to the present format.

    Raises:
        UsageError: At the first that cannot be brought to it.
    """
    parser = Parser(prog="python -m src.upgrade", description=__doc__)
    parser.add_argument("folders", nargs="+", help="a model folder that a training run wrote")
    for folder in parser.parse_args(argv).folders:
        try:
            is_changed = upgrade_folder(folder)
        except (ValueError, OSError) as error:
            raise UsageError(str(error)) from None
        print(f"{folder}: {DONE if is_changed else 'is as it was written, nothing to do'}")
    return 0


if __name__ == "__main__":
    run_command(main)
