"""What a user typed, before any configuration is composed.

Free text and paths are quoted so that Hydra's grammar never reads them, a misspelt name is answered with
its neighbours, and the arguments of a `_target_` are read from its source, because importing it would
import torch. Nothing here is heavy and nothing here knows Hydra.
"""

import ast
import difflib
import importlib.util
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from search_r3.errors import UsageError

FREE_TEXT = ("data.columns.query", "query")
"""Keys whose value is text: even `null` is a word there. Whole keys: `model.lengths.query` is a number."""
PATHS = (
    "corpus",
    "path",
    "folder",
    "dir",
    "file",
    "resume",
    "study",
    "space",
    "reasonings",
    "output",
    "embeddings",
)
"""Keys whose value is a path, by last component or as an ending (`output_dir`); `null` unsets them."""
FOLDERS = ("test",)
"""Keys whose value is a path, by last component alone: `min_test` is a number; `null` unsets them."""
HUB_OR_PATH = ("model.name", "dataset")
"""Keys, whole or by last component, whose value is a folder or a name on the hub; a sweep lists several."""
PATH_LISTS = ("files",)
"""Keys whose value is a path or a list of paths in brackets; `null` unsets them."""
SPLITS = ("split", "train_split", "validation_split", "test_split", "dataset_split")
NAMES = ("name", "dataset_config", *SPLITS)
"""Keys, by last component, whose value is a name: `split=2020` is no number; `null` unsets them."""
NAME_LISTS = ("benchmarks",)
"""Keys whose value is a list of names in brackets."""
COMMAS = ("factory",)
"""Keys, by last component, whose value is a text with commas, such as `IVF4096,SQ8`; `null` unsets them."""
_NO_WORDS = ("null", "true", "false", "inf", "nan")
TRAINER_NODES = ("stage.trainer", "strategy", "debug")
"""Nodes that are handed to `pytorch_lightning.Trainer` as arguments."""
NAMED_BY = {"data.weights": "data.sources"}
"""Nodes with a key for each of another node's, which may be added to on the same command line."""


def literal(text: str) -> str:
    """`text` as a value of an OmegaConf container that reads as exactly `text`: `${` refers to nothing."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text)


def quoted(text: str) -> str:
    """`text` as a Hydra value that composes to exactly `text`.

    Two readers are kept out: Hydra's grammar, by single quotes (a backslash counts there only before a
    quote), and OmegaConf's interpolation, by a backslash before `${`.
    """
    text = literal(text)
    text = re.sub(r"(\\*)'", lambda match: match[1] * 2 + "\\'", text)
    text = re.sub(r"(\\+)$", lambda match: match[1] * 2, text)
    return f"'{text}'"


def _is_named(key: str, names: Iterable[str]) -> bool:
    last = key.rsplit(".", 1)[-1]
    return any(last == name or last.endswith(f"_{name}") for name in names)


def quote_free_text(arguments: Sequence[str], is_sweep: bool = False) -> list[str]:
    """Command line with the values of free-text and path keys quoted.

    Args:
        arguments: what followed the module's name. Flags and `hydra.*` keys pass as they are.
        is_sweep: whether a path may be swept over, as `model.path=choice(a,b)`; commas alone stay text.

    Returns:
        As many arguments, in the same order.

    Raises:
        UsageError: If an argument is not UTF-8, which no file of the run could hold, a path begins with the
            `~` that a shell leaves alone behind `=`, or several paths are given where one is read.
    """
    result = []
    for argument in arguments:
        if not _is_utf8(argument):
            raise UsageError(f"{argument!r} is not valid UTF-8; rename what it names")
        match = re.match(r"^(\+{0,2}([A-Za-z_][\w.]*))=(.*)$", argument, re.DOTALL)
        result.append(argument if match is None else f"{match[1]}={_value(match[2], match[3], is_sweep)}")
    return result


def _value(key: str, value: str, is_sweep: bool) -> str:
    if key.startswith("hydra."):
        return value
    if key in FREE_TEXT:
        return quoted(value)
    if value == "null":
        return value
    is_choice = is_sweep and re.fullmatch(r"choice\(.*\)", value, re.DOTALL)
    if _is_named(key, PATH_LISTS):
        if value.startswith("[") and value.endswith("]"):
            if re.search(r"""^\[\s*["']|["']\s*\]$""", value):
                return value  # quoted by the user, as names with commas must be
            items = [item.strip() for item in value[1:-1].split(",")]
            return "[" + ",".join(_quoted_path(key, item) for item in items if item) + "]"
        return value if is_choice else f"[{_quoted_path(key, value, '[{}]')}]"
    if _is_named(key, COMMAS) and not is_choice:
        return value if value[:1] in ("'", '"') else quoted(value)
    last = key.rpartition(".")[2]
    if (_is_named(key, PATHS) or last in FOLDERS) and not is_choice:
        return _quoted_path(key, value, "choice({})" if is_sweep else None)
    if not is_sweep and (key in HUB_OR_PATH or last in HUB_OR_PATH):
        return _quoted_path(key, value)
    if last in NAMES and re.fullmatch(r"[\w.+-]+", value):
        return quoted(value)
    if _is_named(key, NAME_LISTS) and re.fullmatch(r"""\[[^][{}()'"]+\]""", value):
        return "[" + ",".join(quoted(item.strip()) for item in value[1:-1].split(",")) + "]"
    return value


def spelled(value: object) -> str:
    """A value as a configuration spells it: `null`, `true` and `false`; text and numbers as they are."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def typed(key: str, value: object) -> str:
    """`key=value` as it is typed, so that it composes to exactly this text, number, truth value or None."""
    if not isinstance(value, str):
        return f"{key}={spelled(value)}"
    is_word = re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value.lower() not in _NO_WORDS
    is_read_as_text = not value.startswith("~") and _value(key, value, is_sweep=False) != value
    return f"{key}={value if is_word or is_read_as_text else quoted(value)}"


def _quoted_path(key: str, path: str, several: str | None = None) -> str:
    """A path in quotes; `several` is how more than one is written, where that can be meant."""
    if path.startswith("~"):
        raise UsageError(
            f"{key}={path}: a shell leaves ~ as it is behind '='; write the folder in full, as "
            f'"$HOME/<name>", or ./{path} where that is its name'
        )
    parts = [part.strip() for part in path.split(",")]
    if several and len(parts) > 1 and not os.path.lexists(path) and all(map(os.path.lexists, parts)):
        raise UsageError(
            f"{key}={path}: a comma is part of a path, and there is none of this name; several are given as "
            f"'{key}={several.format(path)}'"
        )
    return quoted(path)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


ABBREVIATIONS: Mapping[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "bs": ("batch_size",),
    "batch": ("batch_size", "micro_batch"),
    "micro_batch_size": ("micro_batch", "chunk_rows"),
    "steps": ("max_steps",),
    "num_steps": ("max_steps",),
    "n_steps": ("max_steps",),
    "iterations": ("max_steps",),
    "epochs": ("max_steps",),
    "num_train_epochs": ("max_steps",),
    "wd": ("weight_decay",),
    "temp": ("temperature",),
    "kl": ("kl_weight",),
    "kl_coef": ("kl_weight", "kl"),
    "beta": ("kl_weight", "betas"),
    "clip": ("clip_low", "clip_high", "max_grad_norm"),
    "epsilon": ("clip_low", "eps"),
    "grad_clip": ("max_grad_norm",),
    "gradient_clip": ("max_grad_norm",),
    "gpus": ("devices",),
    "n_gpus": ("devices",),
    "nodes": ("num_nodes",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "warmup_steps": ("warmup",),
    "warmup_ratio": ("warmup",),
    "scheduler": ("schedule",),
    "lora_r": ("r",),
    "rank": ("r", "rank"),
    "lora_alpha": ("alpha",),
    "num_generations": ("group_size",),
    "n_rollouts": ("group_size",),
    "max_length": ("document", "query", "max_new_tokens"),
    "max_len": ("document", "query", "max_new_tokens"),
    "max_tokens": ("max_new_tokens", "token_budget"),
    "save_steps": ("save_every_n_steps",),
    "save_every": ("save_every_n_steps",),
    "eval_steps": ("val_check_interval",),
    "eval_every": ("val_check_interval",),
    "logging_steps": ("log_every_n_steps",),
    "log_every": ("log_every_n_steps",),
    "workers": ("num_workers", "workers"),
    "negatives": ("hard_negatives",),
    "dim": ("hidden_size",),
    "layers": ("num_hidden_layers",),
    "heads": ("num_attention_heads",),
    "out": ("output_dir",),
    "output": ("output_dir",),
    "dataset": ("path", "dataset", "name"),
    "topk": ("top_k", "k", "n_retrieved"),
    "checkpoint": ("resume",),
    "ckpt": ("resume",),
}
"""Last components that are meant by what other programs call them."""
_MOST = 3


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """The known names that `name` may stand for, best first, and not more than `_MOST`.

    What it abbreviates; or else, in this order, what looks like it as a whole, what has the same last
    component, one that looks like it, or one of which it is a word.
    """
    names, last = sorted(set(names)), _last(name)
    leaves: dict[str, list[str]] = {}
    for other in names:
        leaves.setdefault(_last(other), []).append(other)
    words = [leaf for leaf in leaves if f"_{last}_" in f"_{leaf}_"]
    meant = [other for leaf in ABBREVIATIONS.get(last, ()) for other in leaves.get(leaf, ())]
    if meant:
        return meant[:_MOST]
    similar = [last, *difflib.get_close_matches(last, list(leaves), n=_MOST, cutoff=0.75), *words]
    found = difflib.get_close_matches(name, names, n=_MOST, cutoff=0.6)
    found += [other for leaf in similar for other in leaves.get(leaf, ())]
    return list(dict.fromkeys(found))[:_MOST]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence that offers the nearest names, or nothing where none is near."""
    close = nearest(name, names)
    return f" Did you mean {', '.join(close)}?" if close else ""


def refuse_unknown(given: str, value: object, choices: Collection[str]) -> None:
    """Refuses a value that is none of the choices; the nearest are named.

    Args:
        given: what the message begins with: the key and the value.
        value: that was given.
        choices: that there are.

    Raises:
        UsageError: With all choices.
    """
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise UsageError(f"{given} does not exist.{hint} Choices: {', '.join(choices)}")


def flat_keys(node: object, prefix: str = "") -> dict[str, object]:
    """Every dotted key of a plain nested container with its value, branches included."""
    items: Iterable[tuple[object, object]] = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    keys: dict[str, object] = {}
    for name, value in items:
        key = f"{prefix}{name}"
        keys[key] = value
        keys.update(flat_keys(value, f"{key}."))
    return keys


def addable_keys(config: dict, parent: str) -> set[str] | None:
    """Names that may be added under `parent`, beyond those that are there.

    Returns:
        The arguments of the callable that `parent` describes, or the sources that it weighs; the empty set
        where it does neither; None where any name will do (an empty mapping such as `data.columns: {}`, or a
        callable that takes any).
    """
    keys = flat_keys(config)
    node = keys.get(parent)
    if parent in NAMED_BY:
        return {str(name) for name in keys.get(NAMED_BY[parent]) or {}}
    ancestors = [parent[:end] for end in range(len(parent) + 1) if end == len(parent) or parent[end] == "."]
    if any(keys.get(ancestor) == {} and ancestor not in TRAINER_NODES for ancestor in ancestors):
        return None
    if parent in TRAINER_NODES:
        return argument_names("pytorch_lightning.trainer.trainer.Trainer")
    if isinstance(node, dict) and isinstance(node.get("_target_"), str):
        return argument_names(node["_target_"])
    return set()


@cache
def argument_names(target: str) -> frozenset[str] | None:
    """Names of the arguments of a function or class, read from its source without importing it.

    Returns:
        None where the source cannot be found or the callable takes any keyword.
    """
    node = definition(target)
    if isinstance(node, ast.FunctionDef):
        return _arguments(node, skip_first=False)
    return _constructor_arguments(node) if isinstance(node, ast.ClassDef) else None


@cache
def definition(target: str) -> ast.FunctionDef | ast.ClassDef | None:
    """The source of a function or class, which is not imported; None where it cannot be found."""
    module, _, name = target.rpartition(".")
    for node in _statements(module):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return node
    return None


def named_in(module: str, name: str) -> str | None:
    """The dotted name of what a module defines, or imports from another, under a name; None for neither."""
    for node in _statements(module):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return f"{module}.{name}"
        if isinstance(node, ast.ImportFrom) and name in (
            found := {a.asname or a.name: a for a in node.names}
        ):
            return named_in(str(node.module), found[name].name)
    return None


@cache
def _statements(module: str) -> Sequence[ast.stmt]:
    """What stands in a module, which is not imported; nothing where its source cannot be found."""
    path = _source(module)
    return () if path is None else ast.parse(path.read_text(encoding="utf-8")).body


def _source(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if top else None  # a top-level name: nothing is imported
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for root in spec.submodule_search_locations or ():
        for path in (Path(root, *rest).with_suffix(".py"), Path(root, *rest, "__init__.py")):
            if path.is_file():
                return path
    return None


def _constructor_arguments(node: ast.ClassDef) -> frozenset[str] | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _arguments(item, skip_first=True)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return frozenset(item.target.id for item in node.body if isinstance(item, ast.AnnAssign))
    return None


def _arguments(node: ast.FunctionDef, skip_first: bool) -> frozenset[str] | None:
    if node.args.kwarg is not None:
        return None
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return frozenset(names[1:] if skip_first else names)
