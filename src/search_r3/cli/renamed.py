"""Names of before, by which run folders and model folders of then still say what they were made of.

Until the package was called `search_r3`, its modules stood in `src` itself. A `_target_` that a folder of
then holds is read under its name of today. One that has no name here is refused with the others that conf/
does not build. Two arguments of the RL stage's policy were words then, and are functions now.
"""

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "src.benchmarks.drift.RecordedFull": "search_r3.benchmarks.drift.RecordedFull",
    "src.data.beir.load_beir_training": "search_r3.data.beir.training.load_beir_training",
    "src.data.datamodules.PretrainDataModule": "search_r3.stages.pretrain.data.PretrainDataModule",
    "src.data.datamodules.SFTDataModule": "search_r3.stages.sft.data.SFTDataModule",
    "src.data.entailmentbank.Parts": "search_r3.data.entailmentbank.Parts",
    "src.data.entailmentbank.load_entailmentbank": "search_r3.data.entailmentbank.load_entailmentbank",
    "src.data.hops.Sizes": "search_r3.data.hops.settings.Sizes",
    "src.data.hops.TextSettings": "search_r3.data.hops.settings.TextSettings",
    "src.data.hops.load_hops": "search_r3.data.hops.reader.load_hops",
    "src.data.mining.mine_by_bm25": "search_r3.stages.sft.mining.mine_by_bm25",
    "src.data.mixture.load_mixture": "search_r3.data.mixture.load_mixture",
    "src.data.negatives.RankRule": "search_r3.data.negatives.RankRule",
    "src.data.pydocs.load_pydocs": "search_r3.data.pydocs.reader.load_pydocs",
    "src.data.rl.RLDataModule": "search_r3.stages.rl.data.RLDataModule",
    "src.data.triples.load_triples": "search_r3.data.triples.load_triples",
    "src.index.base.InPlaceIndex": "search_r3.index.backends.flat.InPlaceIndex",
    "src.index.certified.Certified": "search_r3.index.rules.certified.Certified",
    "src.index.graph.GraphIndex": "search_r3.index.backends.hnsw.HNSWIndex",
    "src.index.ivf.IVFIndex": "search_r3.index.backends.ivf.IVFIndex",
    "src.index.neighbours.Graph": "search_r3.index.rules.neighbourhood.Graph",
    "src.index.refresh.Candidates": "search_r3.index.rules.candidates.Candidates",
    "src.index.refresh.Drift": "search_r3.index.rules.drift.Drift",
    "src.index.refresh.Frozen": "search_r3.index.rules.frozen.Frozen",
    "src.index.refresh.Full": "search_r3.index.rules.full.Full",
    "src.index.refresh.Refresh": "search_r3.index.rules.base.Refresh",
    "src.models.folder.open_embedder": "search_r3.models.folder.opening.open_embedder",
    "src.models.nano.create_nano": "search_r3.models.nano.create_nano",
    "src.models.tuning.FullTuning": "search_r3.models.tuning.FullTuning",
    "src.models.tuning.LoraTuning": "search_r3.models.tuning.LoraTuning",
    "src.objectives.collapse.CollapseLimits": "search_r3.objectives.collapse.CollapseLimits",
    "src.objectives.rewards.Reward": "search_r3.objectives.rewards.Reward",
    "src.objectives.rewards.dcg": "search_r3.objectives.rewards.dcg",
    "src.objectives.rewards.margin_dcg": "search_r3.objectives.rewards.margin_dcg",
    "src.objectives.rewards.scaled_dcg": "search_r3.objectives.rewards.scaled_dcg",
    "src.stages.callbacks.Throughput": "search_r3.stages.throughput.Throughput",
    "src.stages.callbacks.TrainableCheckpoint": "search_r3.stages.checkpoint.TrainableCheckpoint",
    "src.stages.completions.Completions": "search_r3.stages.rl.completions.Completions",
    "src.stages.optimization.OptimizationSettings": "search_r3.stages.optimization.OptimizationSettings",
    "src.stages.pretrain.PretrainModule": "search_r3.stages.pretrain.module.PretrainModule",
    "src.stages.rl.PolicySettings": "search_r3.stages.rl.settings.PolicySettings",
    "src.stages.rl.RLModule": "search_r3.stages.rl.module.RLModule",
    "src.stages.rl.RolloutSettings": "search_r3.stages.rl.settings.RolloutSettings",
    "src.stages.sft.SFTLosses": "search_r3.stages.sft.settings.SFTLosses",
    "src.stages.sft.SFTModule": "search_r3.stages.sft.module.SFTModule",
    "src.stages.sft.SelfWritten": "search_r3.stages.sft.settings.SelfWritten",
}

CHOICES: Mapping[tuple[str, str], str] = {("index", "graph"): "hnsw"}
"""Options of config groups by their names of today; `refresh=graph` is another thing, and stays."""

POLICY = "stage.module.policy"
WORDS: Mapping[str, Mapping[str, str]] = {
    "normalisation": {
        "per_token": "search_r3.objectives.grpo.per_token",
        "per_sequence": "search_r3.objectives.grpo.per_sequence",
        "dr_grpo": "search_r3.objectives.grpo.dr_grpo",
    },
    "kl": {name: f"search_r3.objectives.grpo.{name}" for name in ("k1", "k2", "k3")},
}
"""Arguments of `POLICY` that were words; a config group of the same name chooses the function now."""


def function_of(name: str, word: object) -> dict[str, object] | None:
    """The node that stands now where an argument was a word; None where it was no known one."""
    target = WORDS[name].get(word) if isinstance(word, str) else None
    return None if target is None else {"_target_": target, "_partial_": True}


def renamed(name: str) -> str:
    """The name of today; the given one where it has not changed."""
    return RENAMED.get(name, name)
