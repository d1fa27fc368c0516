"""What the result of a command is, to the bit, and in what two results differ.

Left out are times, process numbers, commands, the commit, and where a folder lies: two runs that are told
apart by nothing else are the same. Logs, the status and what is kept of an earlier call are no result.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.faults.moments import DISK

ROOT = Path(__file__).resolve().parents[2]
NO_RESULT = re.compile(
    r"(\.log|\.png|status\.json|provenance\.json|config\.yaml|prompts\.json|facts\.json|/lock|\.lock)$"
    r"|_before_\d+(/|\.\w+$)|metrics_before_resume|journal-\d+\.bin$|checkpoints/(SHA256SUMS|previous\.ckpt)$"
)
LEFT_OVER = re.compile(r"\.part$|\.partial|(^|/)\.[^/]+|\.old$|/tmp")
VARIES = (
    "command",
    "overrides",
    "commit",
    "seconds",
    "started",
    "finished",
    "host",
    "pid",
    "time/",
    "throughput/",
    "search_r3.json",
    "config_sha256",
)
"""Keys that say how a result came about, or are a checksum of one; whatever holds a word is left out."""


def differences(found: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """Names of what differs, is missing, or is there too."""
    return sorted(
        name for name in found.keys() | expected.keys() if found.get(name, ...) != expected.get(name, ...)
    )


def of_training(place: Path, folder: Path | None = None) -> dict[str, object]:
    """Of a run folder: every file that is a result, and the names of files that nobody needs."""
    folder = folder or place / DISK / "run"
    found: dict[str, object] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if LEFT_OVER.search(name):
            found[f"left over: {re.sub('[0-9]+', 'n', name)}"] = True
        elif not NO_RESULT.search(name):
            found[name] = _content(file, place)
    return found


def of_evaluated(place: Path) -> dict[str, object]:
    """Of an output folder of evaluations."""
    return {name: content for name, content in of_training(place).items() if not name.endswith("row.json")}


def of_training_and_cache(place: Path) -> dict[str, object]:
    """Of a run folder and the cache of embeddings."""
    return of_training(place) | _below(place / DISK / "cache", place)


def of_training_and_mined(place: Path) -> dict[str, object]:
    """Of a run folder and what was mined."""
    return of_training(place) | _below(place / DISK / "pydocs", place)


def of_evaluation(place: Path) -> dict[str, object]:
    """Of an output folder of evaluations and the cache of embeddings."""
    return of_evaluated(place) | _below(place / DISK / "cache", place)


def of_search(place: Path) -> dict[str, object]:
    """Of a study: the best of its trials, and the weights of the last one; those of earlier ones are results
    of their own, which a search does not read."""
    folder = place / DISK / "run" / "study"
    last = max(int(path.parent.name) for path in folder.glob("*/model"))
    weights = folder / str(last) / "model" / "model.safetensors"
    return {
        name: _content(folder / name, place) for name in ("best.json", weights.relative_to(folder).as_posix())
    }


def of_report(place: Path) -> dict[str, object]:
    """Of the file that `src.report --output` writes."""
    return {"report": _content(place / "report" / "metrics.json", place)}


def _below(folder: Path, place: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
        if path.is_dir():
            if path.name.startswith("."):
                found[f"left over: {folder.name}/.…"] = True
        elif path.name in ("card.json", "card.md", "SHA256SUMS", "lock") or LEFT_OVER.search(name):
            continue
        else:
            found[name] = _content(path, place)
    return found


def _content(file: Path, place: Path) -> object:
    """What is compared of a file."""
    if not file.is_file():
        return None
    if file.suffix == ".ckpt":
        return _of_checkpoint(file)
    if file.suffix == ".csv":
        return _of_table(file)
    if file.suffix == ".json":
        return _plain(json.loads(file.read_text(encoding="utf-8")), str(place))
    if file.suffix == ".md":
        lines = file.read_text(encoding="utf-8").splitlines()
        return [
            line.replace(str(place), "") for line in lines if not re.search("command|commit|python", line)
        ]
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _plain(content: object, place: str) -> object:
    if isinstance(content, dict):
        return {
            str(key).replace(place, ""): _plain(value, place)
            for key, value in content.items()
            if not any(word in str(key) for word in VARIES)
        }
    if isinstance(content, list):
        return [_plain(value, place) for value in content]
    return content.replace(place, "") if isinstance(content, str) else content


def _of_table(file: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv without what was timed, and without what was not logged."""
    with file.open(newline="") as lines:
        return [
            {key: value for key, value in row.items() if value and not any(word in key for word in VARIES)}
            for row in csv.DictReader(lines)
        ]


def _of_checkpoint(file: Path) -> str:
    """A digest of everything in a checkpoint, tensors by their bytes; not of what it says of the records,
    which hold times and are compared themselves."""
    import torch

    digest = hashlib.sha256()
    content = torch.load(file, map_location="cpu", weights_only=True)
    for part in _parts({key: value for key, value in content.items() if key != "records"}):
        digest.update(part)
    return digest.hexdigest()


def _parts(content: object) -> Iterator[bytes]:
    import torch

    if isinstance(content, dict):
        for key, value in content.items():
            yield f"{key!r}:".encode()
            yield from _parts(value)
    elif isinstance(content, list | tuple):
        yield f"{type(content).__name__} {len(content)}".encode()
        for value in content:
            yield from _parts(value)
    elif isinstance(content, torch.Tensor):
        yield f"{content.dtype} {tuple(content.shape)}".encode()
        yield content.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        yield repr(content).encode()
