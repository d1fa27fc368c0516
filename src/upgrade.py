"""Brings model folders of format 1 to the present one: `python -m src.upgrade <folder> ...`.

The prompts are rendered and written into the folder, and its README.md is written anew; weights and tokenizer
stay as they are, and so do the vectors. Folders of format 1 also open without this.
"""

import argparse
import sys

from src.models.folder import upgrade_folder


def main() -> int:
    """0 where every folder is of the present format; 2 at the first that cannot be brought to it."""
    parser = argparse.ArgumentParser(prog="python -m src.upgrade", description=__doc__)
    parser.add_argument("folders", nargs="+", help="a model folder that a training run wrote")
    for folder in parser.parse_args().folders:
        try:
            is_changed = upgrade_folder(folder)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{folder}: {'upgraded' if is_changed else 'is of the present format already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
