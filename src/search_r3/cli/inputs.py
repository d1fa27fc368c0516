"""The files that a command reads: what is not there is refused before a run folder is made.

What is wrong in a file is for its reader to say.
"""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.trust import calls
from search_r3.errors import UsageError

COLLECTION, FILE = "collection", "file"
INPUTS: Mapping[str, Mapping[str, str]] = {
    "search_r3.data.beir.training.load_beir_training": {"path": COLLECTION, "reasonings": FILE},
    "search_r3.data.entailmentbank.load_entailmentbank": {"path": COLLECTION},
    "search_r3.data.triples.load_triples": {"files": FILE, "corpus": FILE, "test": COLLECTION},
}
"""Of each reader, the arguments that name a folder in BEIR layout, or a file or several."""


def check_inputs(data: DictConfig) -> None:
    """Refuses a path that leads nowhere, of a data set or of a source of it.

    Args:
        data: the node `data` of a command.

    Raises:
        UsageError: With the key.
    """
    for key, target, node in calls(OmegaConf.to_container(data, resolve=True), "data"):
        for name, kind in INPUTS.get(str(target), {}).items():
            given = node.get(name)
            for path in given if isinstance(given, list) else [given]:
                if path is not None and (problem := _problem(Path(str(path)), kind)):
                    raise UsageError(f"{key.removesuffix('_target_')}{name}={path}: {problem}")


def corpus_files(folder: Path) -> list[Path]:
    """Where a folder in BEIR layout may have its documents: plain or compressed."""
    return [folder / f"corpus.jsonl{end}" for end in ("", ".gz")]


def without_corpus(folder: Path) -> str:
    """That a folder has no documents; empty where it has."""
    is_there = any(file.is_file() for file in corpus_files(folder))
    return "" if is_there else "there is no corpus.jsonl in this folder"


def _problem(path: Path, kind: str) -> str:
    """Why a path is not what is expected; empty where it is, or its reader knows better."""
    if kind == FILE:
        return "is a folder where a file is expected" if path.is_dir() else _absent(path, "file")
    if path.is_dir():
        return without_corpus(path)
    return _absent(path, "folder") or "is a file where a folder in BEIR layout is expected"


def _absent(path: Path, kind: str) -> str:
    return "" if path.exists() else f"no such {kind}"
