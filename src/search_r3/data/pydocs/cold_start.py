"""The cold-start reasoning of every row, written beside the rows once per recipe."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import search_r3.data.cold_start
from search_r3.data.cold_start import cold_start_reasoning
from search_r3.files import json_sha256, removal, write_text
from search_r3.progress import progress_over


def reasonings_of(folder: Path, rows: Sequence[dict[str, str]], recipe: dict[str, int | bool]) -> list[str]:
    """Reasoning of each row under a recipe, written beside the rows once per recipe."""
    recipe_text = json.dumps(recipe, sort_keys=True) + inspect.getsource(search_r3.data.cold_start)
    key = hashlib.sha256(recipe_text.encode()).hexdigest()[:12]
    path = folder / f"reasoning-{key}.json"
    if path.exists():
        return _read_reasonings(path)
    counts = json.loads((folder / "word_counts.json").read_text())
    bar = progress_over(rows, len(rows), "pydocs: reasoning", "rows")
    n = len(rows)
    reasonings = [cold_start_reasoning(row["query"], row["document"], counts, n, **recipe) for row in bar]
    write_text(path, json.dumps({"sha256": json_sha256(reasonings), "reasonings": reasonings}))
    return reasonings


def _read_reasonings(path: Path) -> list[str]:
    """What was written under a recipe.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        reasonings = content["reasonings"]
        is_whole = content["sha256"] == json_sha256(reasonings)
    except (OSError, ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path}: is damaged; remove it, and the next call writes it anew: {removal(path)}")
    return reasonings
