"""The data card: how much of what was mined, from which versions and under which licences."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from search_r3.data.pydocs.mining import Record, normal, row_of
from search_r3.data.pydocs.settings import SPLITS, STDLIB, Settings
from search_r3.markdown import table


def card_of(name: str, settings: Settings, pairs: Mapping[str, Sequence[Record]], n_texts: int) -> dict:
    """Facts of what was mined, as JSON; those of the packages are apart, see `package_facts`."""
    train = pairs["train"]
    return {
        "name": name,
        "python": platform.python_version(),
        "settings": asdict(settings),
        "documents": {split: len(pairs[split]) for split in SPLITS},
        "queries": {
            split: len({normal(record.function.query) for record in pairs[split]}) for split in SPLITS
        },
        "modules": {split: len({record.module for record in pairs[split]}) for split in SPLITS},
        "texts": n_texts,
        "documents_by_package": _by_package(pairs),
        "licence": "Source code of the packages above, each under its own licence; mined on this machine "
        "from its own installation and not redistributed.",
        "examples": [row_of(record) for record in train[:: max(1, len(train) // 5)][:5]],
    }


def _by_package(pairs: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, int]]:
    counts = {split: Counter(record.package for record in pairs[split]) for split in SPLITS}
    total = sum(counts.values(), Counter())
    return {
        package: {split: counts[split][package] for split in SPLITS}
        for package, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))
    }


def package_facts(pinned: Mapping[str, str], installed: Mapping[str, str], settings: Settings) -> list[dict]:
    facts = [
        {
            "name": name,
            "pinned": pinned[name],
            "installed": installed[name],
            "is_pinned_version": pinned[name].partition("+")[0] == installed[name],
            "licence": _licence(name),
        }
        for name in settings.packages
    ]
    if settings.include_stdlib:
        version = platform.python_version()
        stdlib = {"name": STDLIB, "pinned": version, "installed": version, "is_pinned_version": True}
        facts.insert(0, stdlib | {"licence": "PSF-2.0"})
    return facts


def _licence(package: str) -> str:
    metadata = importlib.metadata.metadata(package)
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        text.rsplit(" :: ", 1)[1]
        for text in metadata.get_all("Classifier") or []
        if text.startswith("License :: ") and text.count(" :: ") > 1
    ]
    first_line = (metadata.get("License") or "").strip().split("\n")[0]
    return "; ".join(classifiers) or first_line[:60] or "not stated"


def card_text(card: Mapping) -> str:
    """The data card as Markdown."""
    documents = card["documents"]
    lines = [
        f"# {card['name']}",
        "",
        "Docstring sentence to function source, "
        f"mined under Python {card['python']} from {card['files']} files.",
        f"Documents: {documents['train']} train, {documents['validation']} validation, {documents['test']} "
        f"test (from {card['modules']['test']} modules); {card['texts']} running texts.",
        f"Files skipped: {card['files_skipped']}. Near-duplicates removed: "
        f"{card['near_duplicates_removed']}. Pairs dropped: {card['pairs_dropped']}.",
        f"Licence: {card['licence']}",
        "",
        _packages(card),
    ]
    for row in card["examples"]:
        lines += ["", f"**{row['query']}** (`{row['id']}`)", "", "```python", row["document"], "```"]
    return "\n".join(lines) + "\n"


def _packages(card: Mapping) -> str:
    """A line per package: its version, its licence, and its documents by split."""
    facts = {fact["name"]: fact for fact in card["packages"]}
    splits = ("train", "validation", "test")
    lines = []
    for package, counts in card["documents_by_package"].items():
        told = [facts[package][key] for key in ("installed", "pinned", "licence")]
        lines.append((package, *told, *(counts[split] for split in splits)))
    return table(("package", "version", "pinned", "licence", *splits), lines)
