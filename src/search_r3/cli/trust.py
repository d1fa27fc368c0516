"""What a folder that somebody else may have written can have built: names declared here, or in `trust=`.

A `_target_` is a name that is imported and called. One's own command line and `--config-dir` may name
anything. A run folder (`resume=`, `if_exists=resume`) and a search space come from whoever wrote them. Their
targets must be `BUILDERS`, stand in a YAML file of the user's `--config-dir`, or lie in a package that the
user names in `trust=[my_rules]`. They are compared as names, before anything of them is imported. What comes
from a folder can also refer to nothing but its own place and what is shipped, since a reference may read the
environment, and writes in that folder only.
"""

import importlib
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import normpath
from types import ModuleType

import yaml
from omegaconf import DictConfig, OmegaConf

from search_r3.cli.overrides import flat_keys
from search_r3.cli.renamed import POLICY, RENAMED, WORDS, function_of
from search_r3.errors import UsageError
from search_r3.records import read_config

BUILDERS = frozenset(
    {
        "pytorch_lightning.loggers.wandb.WandbLogger",
        "search_r3.benchmarks.drift.RecordedFull",
        "search_r3.data.beir.training.load_beir_training",
        "search_r3.stages.pretrain.data.PretrainDataModule",
        "search_r3.stages.sft.data.SFTDataModule",
        "search_r3.data.entailmentbank.Parts",
        "search_r3.data.entailmentbank.load_entailmentbank",
        "search_r3.data.hops.settings.Sizes",
        "search_r3.data.hops.settings.TextSettings",
        "search_r3.data.hops.reader.load_hops",
        "search_r3.stages.sft.mining.mine_by_bm25",
        "search_r3.data.mixture.load_mixture",
        "search_r3.data.negatives.RankRule",
        "search_r3.data.pydocs.reader.load_pydocs",
        "search_r3.stages.rl.data.RLDataModule",
        "search_r3.data.triples.load_triples",
        "search_r3.index.backends.flat.InPlaceIndex",
        "search_r3.evaluation.modes.Auto",
        "search_r3.evaluation.modes.BaseDirect",
        "search_r3.evaluation.modes.BaseReasoning",
        "search_r3.evaluation.modes.Blended",
        "search_r3.evaluation.modes.Bm25",
        "search_r3.evaluation.modes.Direct",
        "search_r3.evaluation.modes.FusedReasoning",
        "search_r3.evaluation.modes.GivenBm25",
        "search_r3.evaluation.modes.GivenReasoning",
        "search_r3.evaluation.modes.Hybrid",
        "search_r3.evaluation.modes.HybridDirect",
        "search_r3.evaluation.modes.Reasoning",
        "search_r3.evaluation.modes.ShuffledReasoning",
        "search_r3.index.rules.certified.Certified",
        "search_r3.index.backends.faiss_index.FaissIndex",
        "search_r3.index.backends.hnsw.HNSWIndex",
        "search_r3.index.backends.ivf.IVFIndex",
        "search_r3.index.rules.neighbourhood.Graph",
        "search_r3.index.rules.candidates.Candidates",
        "search_r3.index.rules.drift.Drift",
        "search_r3.index.rules.frozen.Frozen",
        "search_r3.index.rules.full.Full",
        "search_r3.index.rules.base.Refresh",
        "search_r3.models.folder.loading.load_embedder",
        "search_r3.models.folder.opening.open_embedder",
        "search_r3.models.nano.create_nano",
        "search_r3.models.sentence_transformer.load_sentence_transformer",
        "search_r3.models.tuning.FullTuning",
        "search_r3.models.tuning.LoraTuning",
        "search_r3.objectives.collapse.CollapseLimits",
        "search_r3.objectives.grpo.dr_grpo",
        "search_r3.objectives.grpo.k1",
        "search_r3.objectives.grpo.k2",
        "search_r3.objectives.grpo.k3",
        "search_r3.objectives.grpo.per_sequence",
        "search_r3.objectives.grpo.per_token",
        "search_r3.objectives.rewards.Reward",
        "search_r3.objectives.rewards.dcg",
        "search_r3.objectives.rewards.margin_dcg",
        "search_r3.objectives.rewards.scaled_dcg",
        "search_r3.stages.sharding.ShardedStrategy",
        "search_r3.stages.throughput.Throughput",
        "search_r3.stages.checkpoint.TrainableCheckpoint",
        "search_r3.stages.rl.completions.Completions",
        "search_r3.stages.optimization.OptimizationSettings",
        "search_r3.stages.pretrain.module.PretrainModule",
        "search_r3.stages.rl.settings.PolicySettings",
        "search_r3.stages.rl.module.RLModule",
        "search_r3.stages.rl.settings.RolloutSettings",
        "search_r3.stages.sft.settings.SFTLosses",
        "search_r3.stages.sft.module.SFTModule",
        "search_r3.stages.sft.settings.SelfWritten",
    }
)
"""Every `_target_` of conf/, as a test says; each under the name that it is defined by."""

WRITES = {
    "search_r3.benchmarks.drift.RecordedFull": "folder",
    "search_r3.stages.rl.data.RLDataModule": "store",
    "search_r3.stages.checkpoint.TrainableCheckpoint": "folder",
    "search_r3.stages.rl.completions.Completions": "file",
}
"""The argument that says where a builder writes what belongs to a run."""

TAKES = {"pytorch_lightning.loggers.wandb.WandbLogger": frozenset({"project", "offline", "log_model"})}
"""Arguments of a builder that hands any others on: those of conf/. Others could name a server."""

CALLING = frozenset({"_target_", "_partial_", "_convert_", "_recursive_"})
"""Keys of a node that say how its target is called."""

CHECKPOINTS = "checkpoints"
"""In `trust=`: sharded checkpoints, whose readers in torch and DeepSpeed unpickle."""

_NEVER = frozenset({*sys.stdlib_module_names, "builtins", "search_r3", "src", "hydra", "omegaconf"})
_LIBRARIES = frozenset(
    (
        "accelerate", "bm25s", "cloudpickle", "datasets", "dill", "faiss", "fsspec", "huggingface_hub",
        "joblib", "lightning_fabric", "numpy", "optuna", "pandas", "peft", "pytorch_lightning", "safetensors",
        "scipy", "sklearn", "tokenizers", "torch", "torchmetrics", "transformers", "usearch", "wandb", "yaml",
    )
)  # fmt: skip
"""They hold readers of pickles and writers of files, so that none is trusted as a whole."""

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\$\{")  # an odd number of backslashes before it makes it text
_KNOWN_REFERENCE = re.compile(r"\$\{(output_dir|shipped:(?!/|.*\.\.)[\w./-]+)\}")


# ---- what a user trusts


def checked_trust(value: object) -> tuple[str, ...]:
    """The packages that a user trusts, from the value of `trust=`.

    Raises:
        UsageError: If it is no list of dotted names, or one of them holds functions that read pickles or
            write files: the standard library, this project, a whole library.
    """
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UsageError(f"trust={_short(value)}: a list of packages is needed, as trust=[my_rules]")
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"trust: {_short(name)} is no package; write its dotted name, as in trust=[my_rules]"
            )
        if _top(name) in _NEVER:
            raise UsageError(
                f"trust: {name} is part of Python, Hydra or this project, of which only what conf/ builds is "
                "ever called by a folder; name a package of your own"
            )
        if name in _LIBRARIES:
            raise UsageError(
                f"trust: {name} also holds functions that read pickles and write files; name the one class "
                f"that is built, as trust=[{name}.<module>.<Class>]"
            )
    return tuple(value)


def _is_trusted(target: str, trust: Iterable[str]) -> bool:
    return any(_is_under(target, name) for name in trust)


def _is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _top(name: str) -> str:
    return name.partition(".")[0]


def targets_in(folder: Path) -> frozenset[str]:
    """Every `_target_` in the YAML files of a folder of the user's own configs."""
    found = set()
    for file in (*folder.rglob("*.yaml"), *folder.rglob("*.yml")):
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue  # composing it says what is wrong
        found |= {target for _, target, _ in calls(content) if isinstance(target, str)}
    return frozenset(found)


# ---- what comes from a folder


def stored_config(file: Path) -> DictConfig:
    """The configuration of a run folder; nothing in it is resolved.

    Raises:
        UsageError: If the file cannot be read, is not a run's, holds settings of Hydra, or refers to anything
            but `${output_dir}` and `${shipped:<path>}`.
    """
    remedy = "a run folder has it as the run wrote it: take it from a copy, or start a new run"
    stored = read_config(file, remedy)
    if "output_dir" not in stored:
        raise UsageError(f"{file}: not the configuration of a run; {remedy}")
    content = OmegaConf.to_container(stored, resolve=False)
    if "hydra" in content:
        raise UsageError(f"{file}: the key hydra does not belong there; {remedy}")
    nodes = flat_keys(content)
    for key in ("stage", "stage.trainer", "stage.datamodule", "data", "model"):
        if not isinstance(nodes.get(key), (dict, type(None))):
            raise UsageError(f"{file}: {key} must hold keys with values; {remedy}")
    for key, target, _ in calls(content):
        if isinstance(target, str) and target in RENAMED:
            OmegaConf.update(stored, key, RENAMED[target])
    for name in WORDS:
        function = function_of(name, nodes.get(f"{POLICY}.{name}"))
        if function is not None:
            OmegaConf.update(stored, f"{POLICY}.{name}", function, merge=False)
            stored[name] = function
    for key, text in _texts(content):
        for match in _REFERENCE.finditer(text):
            if not _KNOWN_REFERENCE.match(text, match.end() - 2):
                raise UsageError(
                    f"{file}: {key} is {_short(text)}: a stored configuration refers to ${{output_dir}} and "
                    "${shipped:<path>} alone; put the value there"
                )
    return stored


def refuse_foreign(
    node: object,
    source: str,
    trust: Sequence[str] = (),
    own: Collection[str] = (),
    folder: Path | None = None,
    typed: Collection[str] = (),
) -> None:
    """Refuses a plain configuration from a folder or file that would have anything built but what it may.

    Args:
        node: unresolved; every `_target_` below it is checked, at any depth.
        source: what to call it in a message, as `resume=<folder>: config.yaml`.
        trust: packages that the user names; what is named below them is imported here, after everything else
            has passed, and must be defined below them too.
        own: targets that the user's own configs name.
        folder: that a run writes in; None where nothing is asked about places.
        typed: keys that the user has given on this command line.

    Raises:
        UsageError: With the key, the target and what to type.
    """
    found = list(calls(node))
    for key, target, _ in found:
        if not isinstance(target, str) or not _NAME.fullmatch(target) or "." not in target:
            raise UsageError(f"{source}: {key} is {_short(target)}; it must be the dotted name of a builder")
    unknown = {
        key: target
        for key, target, _ in found
        if target not in BUILDERS and target not in own and not _is_trusted(target, trust)
    }
    if unknown:
        raise UsageError(_unknown(source, unknown, trust))
    for key, target, arguments in found:
        if target in BUILDERS:
            _check_arguments(source, key.rpartition(".")[0], target, arguments, folder, typed)
    for key, target, _ in found:
        if target not in BUILDERS and target not in own:
            _check_definition(f"{source}: {key}", target, trust)


def calls(node: object, key: str = "") -> Iterator[tuple[str, object, Mapping]]:
    """Every `_target_` below a plain container: its key, its value, and the node that it stands in."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            below = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                yield below, value, node
            yield from calls(value, below)
    elif isinstance(node, (list, tuple)):
        for place, value in enumerate(node):
            yield from calls(value, f"{key}.{place}" if key else str(place))


def _texts(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, (list, tuple)):
        for place, value in enumerate(node):
            yield from _texts(value, f"{key}.{place}")
    elif isinstance(node, str):
        yield key, node


def _unknown(source: str, unknown: Mapping[str, str], trust: Sequence[str]) -> str:
    """The message about targets that are no builders; what to type, where the user may trust them."""
    key, target = next(
        ((key, target) for key, target in unknown.items() if _to_trust(target) is None),
        next(iter(unknown.items())),
    )
    others = len(set(unknown.values())) - 1
    more = f" (and {others} more such)" if others else ""
    name = _to_trust(target)
    if name is None:
        return (
            f"{source}: {key} is {target}{more}, which conf/ does not build: no folder may have it called, "
            "whoever wrote it. Do not use this folder, or start a new run with a target of your own"
        )
    names = ",".join(dict.fromkeys([*trust, *filter(None, map(_to_trust, unknown.values()))]))
    return (
        f"{source}: {key} is {target}{more}, which is not part of this project, and whoever wrote the folder "
        f"could run anything by it. Where the code is your own, say so: trust=[{names}]"
    )


def _to_trust(target: str) -> str | None:
    """What a user would name in `trust=` for a target; None where nothing would do."""
    if _top(target) in _NEVER:
        return None
    if _top(target) in _LIBRARIES:
        return target if target.rpartition(".")[2][:1].isupper() else None
    return _top(target)


def _check_arguments(
    source: str, node: str, target: str, arguments: Mapping, folder: Path | None, typed: Collection[str]
) -> None:
    """Refuses arguments of a builder by which a folder would reach beyond itself."""

    def key_of(name: str) -> str:
        return f"{node}.{name}" if node else name

    if "_args_" in arguments:
        raise UsageError(f"{source}: {key_of('_args_')}: arguments stand under their names")
    strange = sorted(str(name) for name in arguments.keys() - CALLING - TAKES.get(target, arguments.keys()))
    strange = [name for name in strange if key_of(name) not in typed]
    if strange:
        raise UsageError(
            f"{source}: {key_of(strange[0])}={_short(arguments[strange[0]])} goes to another program; "
            f"where it is as you want it, give it on this command line too: {key_of(strange[0])}=..."
        )
    name = WRITES.get(target)
    if folder is None or name is None or key_of(name) in typed:
        return
    if not _is_inside(str(arguments.get(name)), folder):
        raise UsageError(
            f"{source}: {key_of(name)}={_short(arguments.get(name))} is outside the run folder, and the run "
            f"writes and replaces what is there; where that is as you want it, give it on this command line "
            f"too: {key_of(name)}=..."
        )


def _is_inside(text: str, folder: Path) -> bool:
    """Whether a path, in which `${output_dir}` is the folder, lies below the folder, by its name."""
    root = str(folder.absolute())
    path = normpath(str(Path.cwd() / text.replace("${output_dir}", root)))
    return path.startswith(f"{normpath(root)}/")


def _check_definition(key: str, target: str, trust: Sequence[str]) -> None:
    """Imports a target that the user trusts; one defined elsewhere, as `my_rules.os.system`, is refused.

    Raises:
        UsageError: Also if it cannot be imported, or is no function or class.
    """
    package = next(name for name in trust if _is_under(target, name))
    found: object = None
    done: list[str] = []
    for part in target.split("."):
        done.append(part)
        try:
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(".".join(done))
        except Exception as error:  # whatever the user's module raises
            reason = f"{type(error).__name__}: {_short(str(error))}"
            raise UsageError(
                f"{key} is {target}, which cannot be imported ({reason}); is its folder on PYTHONPATH?"
            ) from error
        if isinstance(found, ModuleType) and _top(found.__name__) != _top(target):
            raise UsageError(f"{key} is {target}, which is {found.__name__}'s: not under trust=[{package}]")
    home = getattr(found, "__module__", None) if hasattr(found, "__qualname__") else None
    is_class = isinstance(found, type)
    if not callable(found) or not isinstance(home, str):
        raise UsageError(f"{key} is {target}, which is no function or class")
    if not _is_under(home, _top(target) if target == package else package):
        raise UsageError(f"{key} is {target}, which {home} defines: not under trust=[{package}]")
    if _top(target) in _LIBRARIES and not is_class:
        raise UsageError(f"{key} is {target}: of a library, only a class can be trusted by its name")


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
