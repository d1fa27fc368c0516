"""Looks at what a model folder does with a text: `python -m src.check model.path=<folder>`.

Last ids of a query, a document and a cut document, prompts, padding, pooling, whether the batch changes a
vector, and what another tool would do wrong with the folder. A folder of sentence-transformers, or a plain
Hugging Face one, is looked at too, as far as its files say. Ends with 1 where a line says WRONG.
"""

from collections.abc import Sequence

from search_r3.cli.last_resort import Parser, run_command
from search_r3.errors import UsageError

KEY = "model.path="


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line per fact.

    Raises:
        UsageError: If the folder is no model folder, or cannot be used.
    """
    parser = Parser(prog="python -m src.check", description=__doc__)
    parser.add_argument("folder", metavar=f"{KEY}<folder>", help="of a training run, or of others")
    folder = parser.parse_args(argv).folder.removeprefix(KEY)
    if not folder:
        raise UsageError(f"{KEY} is empty; give the folder that a training run wrote (…/model)")

    from transformers.utils.logging import disable_progress_bar

    from search_r3.models.folder.checking import checked

    disable_progress_bar()
    try:
        lines = checked(folder)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from None
    width = max(len(name) for name, _ in lines)
    print(folder)
    for name, value in lines:
        print(f"  {name:{width}}  {value}")
    return int(any("WRONG" in value for _, value in lines))


if __name__ == "__main__":
    run_command(main)
