"""Hands a model's work to other tools: `python -m src.export model.path=<folder> to=faiss output=<file>`.

`to=faiss` and `to=parquet` write the vectors of a corpus with the ids of its documents. `to=folder` writes
the model folder again with weights in another dtype.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.inputs import corpus_files
from search_r3.cli.instantiate import instantiate
from search_r3.cli.last_resort import run_command
from search_r3.cli.model_choice import TRAINED, check_reader
from search_r3.cli.overrides import refuse_unknown
from search_r3.cli.searching import check_cache, check_embeddings, tell_cut
from search_r3.cli.training_checks import SAVE_DTYPES
from search_r3.errors import UsageError
from search_r3.folders import folder_for, refuse_to_replace

OF_A_CORPUS = ("faiss", "parquet")
FORMATS = (*OF_A_CORPUS, "folder")
BESIDE = (".ids.jsonl", ".json")
"""Endings of what `to=faiss` writes beside the index."""


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be exported, before anything is loaded.

    Raises:
        UsageError: With what to give.
    """
    if is_sweep:
        raise UsageError("src.export writes one file; --multirun does not apply")
    refuse_unknown(f"to={config.to}", config.to, FORMATS)
    check_reader(config.model, [])
    output = Path(config.output)
    if config.to == "folder":
        _check_folder(config, output)
        return
    if config.corpus is None:
        raise UsageError(f"to={config.to} needs corpus=, a folder in BEIR layout or a JSONL file")
    if not Path(config.corpus).exists():
        raise UsageError(f"corpus={config.corpus}: no such folder or file")
    if config.save_dtype is not None:
        raise UsageError(
            f"save_dtype={config.save_dtype}: to={config.to} writes vectors in float32; leave save_dtype= out"
        )
    if config.embeddings is not None:
        check_embeddings(config.embeddings)
    check_cache(config.cache_dir)
    if output.is_dir():
        raise UsageError(f"output={output} is a folder; name the file that is to be written")
    _refuse_the_corpus(Path(config.corpus), output)


def _refuse_the_corpus(corpus: Path, output: Path) -> None:
    """Refuses to write over the documents, under whatever name they are reached.

    Raises:
        UsageError: With the file that would be lost.
    """
    files = corpus_files(corpus) if corpus.is_dir() else [corpus]
    for written in (output, *(output.with_name(output.name + end) for end in BESIDE)):
        if any(written.exists() and file.exists() and written.samefile(file) for file in files):
            raise UsageError(f"output={output}: {written} is the corpus and would be lost; name another file")


def _check_folder(config: DictConfig, output: Path) -> None:
    if config.model._target_ != TRAINED:
        raise UsageError("to=folder writes model folders of this project; leave model= out")
    if config.save_dtype is not None:
        refuse_unknown(f"save_dtype={config.save_dtype}", config.save_dtype, SAVE_DTYPES)
    for key in ("corpus", "embeddings"):
        if config[key] is not None:
            raise UsageError(f"{key}={config[key]}: to=folder writes the model alone; leave {key}= out")
    if output.resolve() == Path(config.model.path).resolve():
        raise UsageError(f"output={output} is the model folder that is read; name another")
    refuse_to_replace(output)


def run(config: DictConfig) -> None:
    """Writes the file or the folder, and says what it holds."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading and writing weights
    {"folder": _write_folder, "faiss": _write_corpus, "parquet": _write_corpus}[config.to](config)


def _write_folder(config: DictConfig) -> None:
    from search_r3.models.folder import read_description, save_embedder

    path, dtype = config.model.path, config.save_dtype or "bfloat16"
    embedder, description = instantiate(config.model), read_description(path)
    origin = {**description.get("provenance", {}), "exported_from_sha256": embedder.weights_sha256}
    is_trained = description.get("is_trained", True)
    save_embedder(embedder, config.output, origin, dtype, is_trained)
    print(f"{config.output}: the model of {path}, weights in {dtype}")


def _write_corpus(config: DictConfig) -> None:
    from search_r3.api import as_corpus
    from search_r3.evaluation.ranking import corpus_key, document_embeddings, documents_cut
    from search_r3.index.exports import write_faiss, write_parquet

    write: Mapping[str, Callable] = {"faiss": write_faiss, "parquet": write_parquet}
    with folder_for(Path(config.output).parent, "output"):  # before anything is encoded
        corpus, embedder = as_corpus(config.corpus), instantiate(config.model)
        rows = document_embeddings(corpus, embedder, config.cache_dir, embeddings=config.embeddings)
    n_cut = documents_cut(corpus, embedder, config.cache_dir)
    tell_cut(n_cut, corpus, embedder)
    facts = {"model": str(config.model.path), **corpus_key(corpus, embedder), "cut": n_cut}
    for line in write[config.to](Path(config.output), rows, corpus.ids, facts):
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    return entry_point(Entry("export", run, check, is_recorded=False), argv)


if __name__ == "__main__":
    run_command(main)
