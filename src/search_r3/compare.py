"""Compares two evaluations query by query: `python -m src.compare <A> <B>`.

A and B are folders that `python -m src.evaluate` wrote; rows of the same benchmark and mode are compared,
or those of `--mode-a` and `--mode-b`, so that one folder can be compared with itself. With `--qrels` they are
two TREC runs of whatever tool. Told are, for each benchmark and overall, B less A with a paired randomisation
test (corrected by Holm for the number of rows) and a bootstrap interval, wins, ties and losses, and the
queries that gained and lost most. Scores that are missing, damaged or not those of their row are refused.

The table is printed; `compare.json` and `compare.md` have all metrics and queries.
"""

from collections.abc import Sequence
from pathlib import Path

from search_r3.cli.command_line import command_line
from search_r3.cli.comparison_sides import evaluation_pairs, evaluation_rows, run_pair
from search_r3.cli.last_resort import Parser, run_command
from search_r3.cli.provenance import commit
from search_r3.cli.run_folder import new_folder
from search_r3.errors import UsageError
from search_r3.evaluation.comparison import Pair, compared
from search_r3.evaluation.comparison_report import markdown, print_comparison
from search_r3.files import write_json, write_text
from search_r3.folders import make_folder

N_RESAMPLES, SEED = 5000, 0


def main(argv: Sequence[str] | None = None) -> int:
    """Reads two evaluations or runs, compares them, prints and writes what was found.

    Raises:
        UsageError: If they cannot be compared.
    """
    parser = Parser(prog="python -m src.compare", description=__doc__)
    parser.add_argument("a", type=Path, metavar="A", help="folder of an evaluation; a TREC run with --qrels")
    parser.add_argument("b", type=Path, metavar="B", help="the one that is compared with A")
    parser.add_argument("--mode-a", help="mode of A's rows; without --mode-b of B's rows too")
    parser.add_argument("--mode-b", help="mode of B's rows")
    parser.add_argument("--qrels", type=Path, help="judgements of TREC's or BEIR's form; A, B are runs then")
    parser.add_argument("--output", type=Path, help="folder; default outputs/<date>/<time>_compare")
    arguments = parser.parse_args(argv)
    pairs = _pairs(arguments)
    folder = make_folder(arguments.output, "--output") if arguments.output else new_folder("compare")
    try:
        found = compared(pairs, N_RESAMPLES, SEED)
    except ValueError as error:
        raise UsageError(str(error)) from None
    content = {
        "command": command_line(),
        "commit": commit(),
        "a": str(arguments.a),
        "b": str(arguments.b),
        "n_resamples": N_RESAMPLES,
        "seed": SEED,
        **found,
    }
    write_json(folder / "compare.json", content)
    write_text(folder / "compare.md", markdown(content))
    print_comparison(content)
    print(f"all metrics and queries: {folder / 'compare.md'}  {folder / 'compare.json'}")
    return 0


def _pairs(arguments) -> list[Pair]:
    if arguments.qrels is not None:
        if arguments.mode_a or arguments.mode_b:
            raise UsageError("--mode-a and --mode-b choose rows of evaluations; runs with --qrels have none")
        return [run_pair(arguments.a, arguments.b, arguments.qrels)]
    if arguments.mode_b and not arguments.mode_a:
        raise UsageError("--mode-b needs --mode-a, which B's rows are compared with")
    first, second = evaluation_rows(arguments.a), evaluation_rows(arguments.b)
    return evaluation_pairs(first, second, arguments.mode_a, arguments.mode_b)


if __name__ == "__main__":
    run_command(main)
