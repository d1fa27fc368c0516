"""Brings model folders of format 1 to the present one: `python -m src.upgrade <folder> ...`.

The prompts are rendered and written into the folder, and its README.md is written anew; weights and tokenizer
stay as they are, and so do the vectors. Folders of format 1 also open without this.
"""

from src.command_line import UsageError
from src.last_resort import Parser, run_command
from src.models.folder import upgrade_folder


def main() -> int:
    """Brings folders to the present format.

    Raises:
        UsageError: At the first that cannot be brought to it.
    """
    parser = Parser(prog="python -m src.upgrade", description=__doc__)
    parser.add_argument("folders", nargs="+", help="a model folder that a training run wrote")
    for folder in parser.parse_args().folders:
        try:
            is_changed = upgrade_folder(folder)
        except (ValueError, OSError) as error:
            raise UsageError(str(error)) from None
        print(f"{folder}: {'upgraded' if is_changed else 'is of the present format already'}")
    return 0


if __name__ == "__main__":
    run_command(main)
