"""Imports point downwards. Layers are declared here, per module; the imports are read from the source."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PACKAGE = "search_r3"
LAYERS = [
    ("errors", "shipped", "cores", "allocator", "markdown"),
    ("records",),
    ("files", "progress", "distributed"),
    ("folders",),
    ("data",),
    ("objectives",),
    ("models",),
    ("index",),
    ("evaluation",),
    ("stages", "api"),
    ("web",),
    ("cli",),
    (
        "train",
        "evaluate",
        "search",
        "serve",
        "demo",
        "encode",
        "export",
        "report",
        "compare",
        "tune",
        "check",
        "upgrade",
        "base",
        "entailmentbank",
        "gate",
        "bench",
        "benchmarks",
        "__main__",
    ),
]
"""Modules and folders of the package from the bottom up. Those of one line do not know each other."""

STRANGERS = {("index", "models"), ("models", "objectives")}
"""Neither may import the other, though one stands lower."""

MAY_IMPORT_HYDRA = ("cli", "train", "evaluate", "search", "encode", "export", "tune", "benchmarks")
ENTRY_POINTS_MAY_SHARE = {
    ("demo", "search"),
    ("tune", "train"),
    ("benchmarks", "train"),
    ("bench", "benchmarks"),
}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    return {module_name(path, root): path for path in sorted((root / "src" / PACKAGE).rglob("*.py"))}


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file's syntax."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> set[str]:
    """Modules named by any import of a file, those inside functions and TYPE_CHECKING included."""
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def part_of(module: str) -> str:
    """The module or folder directly below the package that holds a module; empty for the package itself."""
    return module.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]


def level_of(part: str) -> int | None:
    return next((level for level, layer in enumerate(LAYERS) if part in layer), None)


def violations(root: Path) -> list[str]:
    found = modules(root)
    problems = []
    for module, path in found.items():
        part = part_of(module)
        if not part:
            continue  # the package itself names what users import
        if level_of(part) is None:
            problems.append(f"{module} has no declared layer")
            continue
        for target in sorted(imports(path)):
            if target.split(".")[0] == "hydra" and part not in MAY_IMPORT_HYDRA:
                problems.append(f"{module} imports {target}")
            if target in found and found[target].name != "__init__.py":
                problems += _edge(module, target)
    return problems


def _edge(module: str, target: str) -> list[str]:
    one, other = part_of(module), part_of(target)
    level, below = level_of(one), level_of(other)
    if one == other or below is None:
        return []  # an undeclared target is told once, for itself
    is_downwards = below < level or (one, other) in ENTRY_POINTS_MAY_SHARE
    if is_downwards and tuple(sorted((one, other))) not in STRANGERS:
        return []
    return [f"{module} imports {target}"]


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
    rewarding = [name for name in graph if name.startswith("search_r3.objectives.")]
    for start in (
        "search_r3.stages.rl.environment",
        "search_r3.stages.rl.module",
        "search_r3.stages.rl.data",
        *rewarding,
    ):
        assert {"search_r3.index.backends.bm25", "bm25s"}.isdisjoint(reached(start, graph)), start
    assert "bm25s" in reached("search_r3.evaluate", graph)  # the baseline: the check can fail
    for file in (ROOT / "conf" / "reward").glob("*.yaml"):
        assert "lexical" not in file.read_text(encoding="utf-8")


PURE = {"collections", "dataclasses", "functools", "hashlib", "inspect", "math", "torch", "typing"}
"""What objectives may import from outside: nothing that reads, writes, prints, logs or sends."""


def test_objectives_are_pure_functions_without_a_collective_or_any_input_and_output():
    for module, path in modules(ROOT).items():
        if module.startswith("search_r3.objectives."):
            others = {name for name in imports(path) if not name.startswith("search_r3.objectives.")}
            assert {name.split(".")[0] for name in others} <= PURE, (module, others)
            assert not any(name.startswith("torch.distributed") for name in others), module
            assert {"open", "print", "input"}.isdisjoint(called(path)), module


def called(path: Path) -> set[str]:
    """Names that a file calls without a dot, and the last name of those with dots."""
    calls = [node.func for node in nodes(path) if isinstance(node, ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name)} | {
        call.attr for call in calls if isinstance(call, ast.Attribute)
    }


COLLECTIVES = {
    "all_gather", "all_gather_object", "all_reduce", "all_to_all", "broadcast", "broadcast_object_list",
    "gather_object", "get_rank", "get_world_size", "init_process_group", "reduce_scatter", "reduce",
}  # fmt: skip
"""Calls of torch.distributed, and of Lightning's strategies, whose barrier after a checkpoint is left."""


def test_one_module_alone_talks_to_other_processes_and_one_shards_weights():
    for module, path in modules(ROOT).items():
        uses_torch = any(name.startswith("torch.distributed") for name in imports(path))
        talks = module == "search_r3.distributed"
        assert uses_torch == (talks or module == "search_r3.stages.sharding"), module
        if not talks:
            assert COLLECTIVES.isdisjoint(called(path)), (module, COLLECTIVES & called(path))


def test_progress_is_shown_in_one_way():
    assert [name for name, path in modules(ROOT).items() if "tqdm" in imports(path)] == ["search_r3.progress"]


@pytest.mark.parametrize(
    ("place", "line", "problem"),
    [
        (
            "src/search_r3/data/types.py",
            "from search_r3.models.embedder import X",
            "search_r3.data.types imports search_r3.models.embedder",
        ),
        (
            "src/search_r3/index/backends/flat.py",
            "import search_r3.models.embedder",
            "search_r3.index.backends.flat imports search_r3.models.embedder",
        ),
        (
            "src/search_r3/models/embedder.py",
            "def f():\n    from search_r3.train import run",
            "search_r3.models.embedder imports search_r3.train",
        ),
        ("src/search_r3/models/embedder.py", "import hydra", "search_r3.models.embedder imports hydra"),
        ("src/search_r3/stray.py", "", "search_r3.stray has no declared layer"),
    ],
)
def test_an_upward_edge_a_stranger_and_an_undeclared_module_are_found(tmp_path, place, line, problem):
    for name in (
        "src/search_r3/data/types.py",
        "src/search_r3/models/embedder.py",
        "src/search_r3/index/backends/flat.py",
        "src/search_r3/train.py",
        place,
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / place).write_text(line)

    assert problem in violations(tmp_path)


@pytest.mark.parametrize("name", ["TIE", "SAME_REWARD"])
def test_a_tolerance_that_several_modules_share_is_defined_once(name):
    homes = [
        module
        for module, path in modules(ROOT).items()
        for node in nodes(path)
        if isinstance(node, ast.Assign) and name in (getattr(target, "id", None) for target in node.targets)
    ]
    users = [m for m, path in modules(ROOT).items() if any(i.endswith(f".{name}") for i in imports(path))]
    assert len(homes) == 1
    assert len(users) >= 1
