"""Imports point downwards. Layers are declared here, per module; the imports are read from the source."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = [
    {
        "src.data.types",
        "src.data.texts",
        "src.command_line",
        "src.devices",
        "src.last_resort",
        "src.model_choice",
        "src.names",
        "src.number_ranges",
        "src.progress",
        "src.records",
        "src.run_folder",
        "src.run_lock",
        "src.sweep_table",
        "src.trust",
    },
    {
        "src.data.pydocs",
        "src.data.docstrings",
        "src.data.duplicates",
        "src.data.jsonl",
        "src.data.reasoning",
        "src.data.reasonings",
        "src.data.entailmentbank",
        "src.data.splits",
        "src.data.beir",
        "src.data.hops",
        "src.data.triples",
        "src.data.mixture",
        "src.data.negatives",
    },
    {"src.models.*", "src.index.*", "src.objectives.*"},
    {"src.environment"},
    {
        "src.data.collate",
        "src.data.mining",
        "src.data.datamodules",
        "src.data.rl",
        "src.evaluation.*",
        "src.stages.*",
        "src.benchmarks.drift",
        "src.benchmarks.replay",
        "src.benchmarks.report",
    },
    {"src.runtime"},
    {
        "src.base",
        "src.train",
        "src.evaluate",
        "src.tune",
        "src.report",
        "src.upgrade",
        "src.benchmarks.base_parity",
        "src.benchmarks.popularity",
        "src.benchmarks.refresh",
        "src.benchmarks.scale",
    },
]
"""From the bottom up. Within a layer imports are free, but for `STRANGERS`."""

STRANGERS = ("src.models", "src.index", "src.objectives")
"""Siblings that do not know each other."""

MAY_IMPORT_HYDRA = ("src.runtime", "src.train", "src.evaluate", "src.tune")
ENTRY_POINTS_MAY_SHARE = {("src.tune", "src.train"), ("src.benchmarks.refresh", "src.train")}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    return {module_name(path, root): path for path in sorted((root / "src").rglob("*.py"))}


@cache
def imports(path: Path) -> set[str]:
    """Modules named by any import of a file, those inside functions and TYPE_CHECKING included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def layer_of(module: str) -> int | None:
    """Position of the layer that names the module, or its package with a star."""
    package = module.rsplit(".", 1)[0]
    for level, layer in enumerate(LAYERS):
        if module in layer or f"{package}.*" in layer:
            return level
    return None


def violations(root: Path) -> list[str]:
    found = modules(root)
    problems = []
    for module, path in found.items():
        if path.name == "__init__.py":
            continue
        level = layer_of(module)
        if level is None:
            problems.append(f"{module} has no declared layer")
            continue
        for target in sorted(imports(path)):
            if target.split(".")[0] == "hydra" and module not in MAY_IMPORT_HYDRA:
                problems.append(f"{module} imports {target}")
            if target not in found or found[target].name == "__init__.py":
                continue
            problems += _edge(module, level, target)
    return problems


def _edge(module: str, level: int, target: str) -> list[str]:
    other = layer_of(target)
    if other is None:
        return []  # told once, for the target itself
    is_sibling = {module.rsplit(".", 1)[0], target.rsplit(".", 1)[0]} <= set(STRANGERS)
    if other > level or (is_sibling and module.rsplit(".", 1)[0] != target.rsplit(".", 1)[0]):
        return [f"{module} imports {target}"]
    is_entry = level == len(LAYERS) - 1 and other == level
    return (
        [f"{module} imports {target}"] if is_entry and (module, target) not in ENTRY_POINTS_MAY_SHARE else []
    )


def test_every_import_points_downwards_and_every_module_has_a_layer():
    assert violations(ROOT) == []


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Everything that a module imports, directly or not."""
    found, left = set(), [start]
    while left:
        for name in graph.get(left.pop(), set()) - found:
            found.add(name)
            left.append(name)
    return found


def test_pitfall_30_no_reward_comes_from_a_lexical_index():
    graph = {name: imports(path) for name, path in modules(ROOT).items()}
    rewarding = [name for name in graph if name.startswith("src.objectives.")]
    for start in ("src.environment", "src.stages.rl", "src.data.rl", *rewarding):
        assert {"src.index.lexical", "bm25s"}.isdisjoint(reached(start, graph)), start
    assert "bm25s" in reached("src.evaluate", graph)  # the baseline: the check can fail
    for file in (ROOT / "conf" / "reward").glob("*.yaml"):
        assert "lexical" not in file.read_text(encoding="utf-8")


def test_objectives_import_torch_only():
    for module, path in modules(ROOT).items():
        if module.startswith("src.objectives."):
            tops = {name.split(".")[0] for name in imports(path)} - {"torch", "src"}
            assert tops <= sys.stdlib_module_names, (module, tops)


def test_progress_is_shown_in_one_way():
    assert [name for name, path in modules(ROOT).items() if "tqdm" in imports(path)] == ["src.progress"]


@pytest.mark.parametrize(
    ("place", "line", "problem"),
    [
        (
            "src/data/types.py",
            "from src.models.embedder import X",
            "src.data.types imports src.models.embedder",
        ),
        ("src/index/flat.py", "import src.models.embedder", "src.index.flat imports src.models.embedder"),
        (
            "src/models/embedder.py",
            "def f():\n    from src.train import run",
            "src.models.embedder imports src.train",
        ),
        ("src/models/embedder.py", "import hydra", "src.models.embedder imports hydra"),
        ("src/stray.py", "", "src.stray has no declared layer"),
    ],
)
def test_an_upward_edge_a_stranger_and_an_undeclared_module_are_found(tmp_path, place, line, problem):
    for name in ("src/data/types.py", "src/models/embedder.py", "src/index/flat.py", "src/train.py", place):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / place).write_text(line)

    assert problem in violations(tmp_path)


@pytest.mark.parametrize("name", ["TIE", "SAME_REWARD"])
def test_a_tolerance_that_several_modules_share_is_defined_once(name):
    homes = [
        module
        for module, path in modules(ROOT).items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and name in (getattr(target, "id", None) for target in node.targets)
    ]
    users = [m for m, path in modules(ROOT).items() if any(i.endswith(f".{name}") for i in imports(path))]
    assert len(homes) == 1
    assert len(users) >= 1
