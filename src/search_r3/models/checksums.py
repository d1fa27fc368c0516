"""Checksums of a model folder: what was written is what is used, and nothing else is read.

`search_r3.json` keeps the SHA-256 of every file that reading the folder depends on, weights, tokenizer and
configuration, and of what it says itself. They are compared before anything is used, in one pass over each
file, which also gives the hash of the weights that stored embeddings are kept under. A folder from before
there were checksums opens and says so. They find damage, and files that were exchanged or left over. Whoever
writes a folder writes its checksums too, so they are no signature.

Weights are safetensors. A file that a reader would unpickle or build another model from has no place in a
model folder, with checksums or without.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from search_r3.errors import UsageError
from search_r3.files import json_sha256
from search_r3.shipped import as_called

DESCRIPTION_FILE = "search_r3.json"
KEY = "checksums"
log = logging.getLogger(__name__)

_READ = re.compile(
    r".*\.(safetensors|safetensors\.index\.json|jinja|model|tiktoken)|"
    r"(adapter_|generation_|tokenizer_|processor_|preprocessor_)?config\.json|"
    r"(tokenizer|vocab|special_tokens_map|added_tokens|chat_template|tekken)\.json|(vocab|merges)\.txt"
)
"""Names that transformers looks for, in the folder itself or in `READ_FOLDERS`."""
_OF_SENTENCE_TRANSFORMERS = frozenset(
    {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "router_config.json"}
)
"""Names that it alone looks for: recorded where they are, and a user may have put them into a folder of
before."""
_MODULES = ("", "/document", "/query", "/pooling", "/normalize")
READ_FOLDERS = (
    "adapter",
    "additional_chat_templates",
    *(f"sentence_transformers{name}" for name in _MODULES),
)
_UNUSED = frozenset({"README.md", "adapter/README.md", DESCRIPTION_FILE})
_FOREIGN = re.compile(
    r".*\.(bin|bin\.index\.json|pt|pth|ckpt|pkl|pickle|h5|msgpack|gguf|joblib|npz)|adapter_config\.json"
)
"""Weights that are unpickled or read instead of ours, and what would have another model read below ours."""
_CHOOSES_CODE = ("attn_implementation", "_attn_implementation", "experts_implementation")
"""Keys of config.json by which transformers downloads and runs a kernel."""

_told: set[Path] = set()


class ModelFolderError(UsageError, ValueError):
    """A model folder or a model choice that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Hashes:
    """What the files of a model folder hold.

    Attributes:
        files: SHA-256 by path in the folder.
        weights: SHA-256 over the contents of the safetensors files of the folder itself, in the order of
            their names.
    """

    files: Mapping[str, str]
    weights: str


def checksums(folder: Path, description: Mapping, only_read: bool = True) -> dict[str, str]:
    """What `search_r3.json` keeps under `KEY`, of what is in a folder now.

    Args:
        folder: of a model.
        description: what `search_r3.json` says.
        only_read: leaves out files that no reader looks for, which a user may have put there.

    Raises:
        ModelFolderError: If a file cannot be read, or there are no weights.
    """
    names = [name for name in _names(folder) if name not in _UNUSED and not name.startswith(".")]
    if only_read:
        names = [
            name for name in names if _is_read(name) or name.rpartition("/")[2] in _OF_SENTENCE_TRANSFORMERS
        ]
    files = dict(hashed(folder, names).files)
    return files | {DESCRIPTION_FILE: description_hash({**description, KEY: files})}


def description_hash(description: Mapping) -> str:
    """SHA-256 of what `search_r3.json` says, its own checksum left out, whatever the layout of the file."""
    others = {name: sha256 for name, sha256 in description[KEY].items() if name != DESCRIPTION_FILE}
    return json_sha256({**description, KEY: others})


def hashed(folder: Path, names: Iterable[str], expected: Mapping[str, str] | None = None) -> Hashes:
    """Reads files once, the weights last.

    Args:
        folder: of a model.
        names: paths in it.
        expected: SHA-256 by path; None compares nothing.

    Raises:
        ModelFolderError: If one cannot be read or differs, or there are no weights.
    """
    weight_names = sorted(filter(_is_weights, names))
    if not weight_names:
        raise ModelFolderError(f"{folder}: holds no *.safetensors file")
    files, weights = {}, hashlib.sha256()
    for name in [*sorted(set(names) - set(weight_names)), *weight_names]:
        digest = hashlib.sha256()
        for block in _blocks(folder / name):
            digest.update(block)
            if name in weight_names and len(weight_names) > 1:
                weights.update(block)
        files[name] = digest.hexdigest()
        if expected is not None and files[name] != expected[name]:
            raise ModelFolderError(_damaged(folder / name, expected[name], files[name]))
    one = files[weight_names[0]] if len(weight_names) == 1 else None
    return Hashes(files, one or weights.hexdigest())


def _blocks(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                yield block
    except OSError as error:
        raise ModelFolderError(f"{file}: cannot be read ({error.strerror or error}); {_REMEDY}") from error


_REMEDY = "take the folder from a copy, or train the model again"


def check_files(folder: Path, description: Mapping) -> str:
    """Compares every file that is read with its checksum; what the description says is `check_description`'s.

    A folder of format 1 has no checksums, and one of format 2 may have none: then nothing is compared.

    Returns:
        The hash of the weights, as `Hashes.weights`.

    Raises:
        ModelFolderError: If a file differs, is missing or is one too many, would be unpickled, or names code;
            with the file and what to do.
    """
    present = _names(folder)
    _refuse_foreign(folder, present)
    _refuse_code(folder / "config.json")
    expected = None if description["format_version"] == 1 else _recorded(folder, description)
    if expected is None:
        _tell(folder)
        return hashed(folder, [name for name in present if _is_weights(name)]).weights
    try:
        return _compared(folder, present, expected)
    except ModelFolderError:
        check_description(folder, description)  # where that is damaged, it is what to look at
        raise


def plain_hashes(folder: Path) -> Hashes:
    """Hashes of weights and configuration of a Hugging Face folder that no training of this project wrote.

    Nothing says what they should be. Pickled weights beside the safetensors are left alone, since those are
    what is read.

    Raises:
        ModelFolderError: If a file is missing or cannot be read, or would have code or another model read.
    """
    present = _names(folder)
    if "adapter_config.json" in present:
        raise ModelFolderError(
            f"{folder / 'adapter_config.json'}: is an adapter, whose base would be read from elsewhere; "
            "merge the two and give the merged folder"
        )
    _refuse_code(folder / "config.json")
    if not any(map(_is_weights, present)):
        pickled = [name for name in present if name.endswith((".bin", ".pt", ".pth"))]
        found = f" ({pickled[0]} is pickled, which is not read)" if pickled else ""
        raise ModelFolderError(
            f"{folder}: holds no *.safetensors file{found}; save its weights as safetensors"
        )
    return hashed(folder, ["config.json", *filter(_is_weights, present)])


def _compared(folder: Path, present: list[str], expected: Mapping[str, str]) -> str:
    """The hash of the weights, once every file has been compared.

    Raises:
        ModelFolderError: If a file differs, is missing or is one too many.
    """
    for name in expected:
        if name not in present:
            raise ModelFolderError(f"{folder / name}: is missing; {_REMEDY}")
    for name in present:
        if _is_read(name) and name not in expected and name not in _UNUSED:
            raise ModelFolderError(
                f"{folder / name}: is not named by {DESCRIPTION_FILE}, so it does not belong to this model "
                "and would be read with it; move it away"
            )
    return hashed(folder, expected, expected).weights


def check_description(folder: Path, description: Mapping) -> None:
    """Compares what `search_r3.json` says with its own checksum, where it has one.

    Raises:
        ModelFolderError: If it differs.
    """
    expected = description.get(KEY, {}).get(DESCRIPTION_FILE) if description["format_version"] > 1 else None
    if expected is not None and expected != (found := description_hash(description)):
        raise ModelFolderError(_damaged(folder / DESCRIPTION_FILE, expected, found))


def _names(folder: Path) -> list[str]:
    """Paths of the files of a folder and of the folders in it that are read, sorted."""
    places = [folder, *(folder / name for name in READ_FOLDERS)]
    return sorted(
        path.relative_to(folder).as_posix()
        for place in places
        if place.is_dir()
        for path in place.iterdir()
        if path.is_symlink() or not path.is_dir()
    )


def _is_read(name: str) -> bool:
    return _READ.fullmatch(name.rpartition("/")[2]) is not None


def _is_weights(name: str) -> bool:
    return "/" not in name and name.endswith(".safetensors")


def _refuse_foreign(folder: Path, present: list[str]) -> None:
    for name in present:
        is_own = name == "adapter/adapter_config.json"
        if not is_own and _FOREIGN.fullmatch(name.rpartition("/")[2]):
            raise ModelFolderError(
                f"{folder / name}: has no place in a model folder, whose weights are safetensors alone: "
                "reading it could run code or give another model; move it away"
            )


def _refuse_code(file: Path) -> None:
    """Refuses a config.json that chooses code to download; what it says of its own code is never heeded."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        names = {name for node in _nodes(config) for name in node}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"{file}: cannot be read ({error}); {_REMEDY}") from error
    if chosen := sorted(names.intersection(_CHOOSES_CODE)):
        raise ModelFolderError(
            f"{file}: {chosen[0]} may name code to download, so a folder does not choose it; take the key "
            "out, and choose with model.attention="
        )


def _nodes(node: object) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)


def _recorded(folder: Path, description: Mapping) -> dict[str, str] | None:
    """The checksums by file, the description's own left out; None where there are none."""
    if KEY not in description:
        strange = sorted(description.keys() - KNOWN)
        if strange:
            raise ModelFolderError(
                f"{folder / DESCRIPTION_FILE}: unknown key {strange[0]!r} and no checksums, so the file is "
                f"damaged; {_REMEDY}"
            )
        return None
    recorded = description[KEY]
    is_whole = isinstance(recorded, dict) and DESCRIPTION_FILE in recorded
    if not is_whole or not all(_is_entry(*entry) for entry in recorded.items()):
        raise ModelFolderError(
            f"{folder / DESCRIPTION_FILE}: {KEY} must map files of the folder to their SHA-256; {_REMEDY}"
        )
    return {name: sha256 for name, sha256 in recorded.items() if name != DESCRIPTION_FILE}


KNOWN = frozenset(
    {
        "format_version", "embed_token", "embed_token_id", "pad_token", "prompts", "rendered", "lengths",
        "prompt_fingerprint", "is_trained", "provenance",
    }
)  # fmt: skip
"""Keys of `search_r3.json` but for the checksums."""


def _is_entry(name: object, sha256: object) -> bool:
    path = PurePosixPath(str(name))
    is_inside = str(path) == name and not path.is_absolute() and ".." not in path.parts
    is_place = len(path.parts) == 1 or path.parent.as_posix() in READ_FOLDERS
    return is_inside and is_place and isinstance(sha256, str) and bool(re.fullmatch("[0-9a-f]{64}", sha256))


def _damaged(file: Path, expected: str, found: str) -> str:
    return (
        f"{file}: is not as it was written: its SHA-256 is {found[:12]}, {DESCRIPTION_FILE} says "
        f"{expected[:12]}; {_REMEDY}. Where you changed it yourself, remove {KEY!r} from {DESCRIPTION_FILE} "
        f"and run {as_called('python -m src.upgrade', file.parent)}"
    )


def _tell(folder: Path) -> None:
    """Says once of a folder that nothing in it could be compared."""
    if folder.resolve() not in _told:
        _told.add(folder.resolve())
        log.warning(
            "%s: is from before there were checksums, so damage to its weights would not be noticed; write "
            "them down: %s", folder, as_called("python -m src.upgrade", folder),
        )  # fmt: skip
