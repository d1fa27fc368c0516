"""Which numbers every key of every configuration may have, declared once and checked when it is composed.

A number out of range then costs no reading of data or weights, and none is taken for another: a batch of -1,
a share of 1.5, a limit of 0, `nan`, text or `true` where a number is due. What a key means belongs to the
callable that it is an argument of, so ranges are declared per `_target_`, wherever it stands; keys of the
commands themselves and arguments of Lightning's Trainer have tables of their own. The tests fail for a number
of conf/ that has no range here.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from search_r3.cli.overrides import TRAINER_NODES, spelled
from search_r3.errors import UsageError


@dataclass(frozen=True)
class Range:
    """Values that a key may have.

    Attributes:
        low: the least; None for no bound.
        high: the greatest; None for no bound.
        is_whole: whether a fraction is refused.
        excludes_low: whether `low` itself is refused.
        excludes_high: whether `high` itself is refused.
        others: further values, such as None.
        takes_text: whether any text will do, such as "auto".
        takes_share: whether a fraction between 0 and 1 will do for a whole number.
        words: what to write, where it is no number.
    """

    low: float | None = None
    high: float | None = None
    is_whole: bool = False
    excludes_low: bool = False
    excludes_high: bool = False
    others: tuple[object, ...] = ()
    takes_text: bool = False
    takes_share: bool = False
    words: str = ""

    def holds(self, value: object) -> bool:
        """Whether a value is one of them; NaN and the infinities never are."""
        if any(value is other or (type(value) is type(other) and value == other) for other in self.others):
            return True
        if isinstance(value, str):
            return self.takes_text
        if (
            self.words
            or isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            return False
        if isinstance(value, float) and self.is_whole:
            return self.takes_share and 0 <= value <= 1 and (value > 0 or self.low == 0)
        above = self.low is None or (value > self.low if self.excludes_low else value >= self.low)
        below = self.high is None or (value < self.high if self.excludes_high else value <= self.high)
        return above and below

    def __str__(self) -> str:
        if self.words:
            return self.words
        kind = "a whole number" if self.is_whole else "a number"
        bounds = []
        if self.low is not None:
            bounds.append(f"above {self.low:g}" if self.excludes_low else f"at least {self.low:g}")
        if self.high is not None:
            bounds.append(f"below {self.high:g}" if self.excludes_high else f"at most {self.high:.0f}")
        words = [" ".join([kind, *([" and ".join(bounds)] if bounds else [])])]
        words += ["a share of all with a decimal point, at most 1.0"] if self.takes_share else []
        words += [str(other).lower() if other in (None, True, False) else str(other) for other in self.others]
        return ", or ".join(words).replace("none", "null")


def or_null(given: Range) -> Range:
    """The same, or null."""
    return replace(given, others=(*given.others, None))


COUNT = Range(1, is_whole=True)
FROM_0 = Range(0, is_whole=True)
SHARE = Range(0, 1)
POSITIVE = Range(0, excludes_low=True)
NOT_NEGATIVE = Range(0)
SEED = Range(0, 2**32 - 1, is_whole=True)  # what NumPy and Lightning take
PART = Range(0, 1, excludes_high=True)
INNER = Range(0, 1, excludes_low=True, excludes_high=True)
UP_TO_1 = Range(0, 1, excludes_low=True)
COSINE_DIFFERENCE = Range(0, 2)
EVERY_N_OR_NEVER = FROM_0

_HELD_OUT_DATA = {"validation_share": PART, "in_memory_mib": FROM_0}
_VALIDATION = {"validation_queries": COUNT, "validation_documents": COUNT}
_MINING = {"n_negatives": COUNT, "k": COUNT}
_LIMIT_OF_ROLLOUTS = {"max_tokens": Range(words="left out: it is the limit of stage.module.rollouts")}
_BATCHES = Range(1, is_whole=True, takes_share=True, others=(None,))
_BATCHES_OR_NONE = replace(_BATCHES, low=0)

_TEXTS = ("query", "document", "reasoning")
_READ_ONLY = {
    **dict.fromkeys(("token_budget", *(f"lengths.{text}" for text in _TEXTS)), or_null(COUNT)),
    "lengths.repeat_ngram": or_null(FROM_0),
}

TARGETS: Mapping[str, Mapping[str, Range]] = {
    "search_r3.models.folder.loading.load_embedder": _READ_ONLY,
    "search_r3.models.sentence_transformer.load_sentence_transformer": _READ_ONLY,
    "search_r3.models.folder.opening.open_embedder": {
        "lengths.query": COUNT,
        "lengths.document": COUNT,
        "lengths.reasoning": COUNT,
        "lengths.repeat_ngram": FROM_0,
        "token_budget": COUNT,
    },
    "search_r3.models.nano.create_nano": {
        "vocab_size": COUNT,
        "hidden_size": COUNT,
        "intermediate_size": COUNT,
        "num_hidden_layers": COUNT,
        "num_attention_heads": COUNT,
        "num_key_value_heads": COUNT,
        "max_position_embeddings": COUNT,
        "initializer_range": POSITIVE,
        "seed": SEED,
    },
    "search_r3.models.tuning.LoraTuning": {"r": COUNT, "alpha": COUNT},
    "search_r3.data.beir.training.load_beir_training": {"min_grade": COUNT, **_HELD_OUT_DATA},
    "search_r3.data.triples.load_triples": _HELD_OUT_DATA,
    "search_r3.data.entailmentbank.load_entailmentbank": {"max_facts": FROM_0},
    "search_r3.data.entailmentbank.Parts": {"set_aside": FROM_0, "tuning": FROM_0, "rl_only": FROM_0},
    "search_r3.data.mixture.load_mixture": {"weights.*": POSITIVE},
    "search_r3.data.pydocs.reader.load_pydocs": {
        "test_share": INNER,
        "validation_share": PART,
        "rl_share": PART,
        "min_test": FROM_0,
        "max_documents_per_query": COUNT,
        "similarity": UP_TO_1,
        "workers": COUNT,
        "reasoning.n_query": FROM_0,
        "reasoning.n_name": FROM_0,
        "reasoning.n_arguments": FROM_0,
        "reasoning.n_types": FROM_0,
        "reasoning.n_body_words": FROM_0,
        "reasoning.max_words": COUNT,
        "reasoning.min_frequency": FROM_0,
    },
    "search_r3.data.hops.reader.load_hops": {"hops": Range(1, 4, is_whole=True), "seed": SEED},
    "search_r3.data.hops.settings.Sizes": {
        **dict.fromkeys(
            ("sft_people", "sft_queries", "companies", "sft_companies", "cities", "regions"), COUNT
        ),
        **dict.fromkeys(("rl_people", "validation_people", "test_people", "other_pages"), FROM_0),
    },
    "search_r3.data.hops.settings.TextSettings": {
        "lines": COUNT,
        "facts_per_line": COUNT,
        "chain_share": SHARE,
        "page_share": SHARE,
        "query_share": SHARE,
        "question_share": SHARE,
    },
    "search_r3.evaluation.modes.Auto": {"threshold": COSINE_DIFFERENCE},
    "search_r3.evaluation.modes.Blended": {"direct_share": INNER},
    "search_r3.evaluation.modes.FusedReasoning": {"n": COUNT, "temperature": POSITIVE, "seed": SEED},
    "search_r3.evaluation.modes.Reasoning": {"limit": or_null(COUNT)},
    "search_r3.evaluation.modes.Hybrid": {"constant": NOT_NEGATIVE},
    "search_r3.evaluation.modes.HybridDirect": {"constant": NOT_NEGATIVE},
    "search_r3.stages.sft.mining.mine_by_bm25": _MINING,
    "search_r3.stages.sft.mining.mine_by_model": _MINING,
    "search_r3.data.negatives.RankRule": {"first": COUNT, "last": COUNT},
    "search_r3.data.negatives.MarginRule": {"margin": NOT_NEGATIVE, "share": UP_TO_1},
    "search_r3.stages.pretrain.data.PretrainDataModule": {
        "batch_size": COUNT,
        "sequence_length": Range(2, is_whole=True),  # a token and the one that follows it
        "text_length": or_null(COUNT),
        "seed": SEED,
    },
    "search_r3.stages.sft.data.SFTDataModule": {
        "batch_size": COUNT,
        "hard_negatives": FROM_0,
        "positives_per_query": COUNT,
        "cluster_share": SHARE,
        "seed": SEED,
        "num_workers": FROM_0,
        **_VALIDATION,
    },
    "search_r3.stages.rl.data.RLDataModule": {
        "batch_size": COUNT,
        "seed": SEED,
        "max_documents": or_null(Range(2, is_whole=True)),
        "encode_batch": COUNT,
        "updates_per_batch": COUNT,
        **_VALIDATION,
    },
    "search_r3.stages.optimization.OptimizationSettings": {
        "learning_rate": POSITIVE,
        "embedding_lr_scale": POSITIVE,
        "weight_decay": NOT_NEGATIVE,
        "betas.*": PART,
        "eps": POSITIVE,
        "warmup": Range(0, is_whole=True, takes_share=True),
        "final_lr_share": SHARE,
        "max_grad_norm": or_null(POSITIVE),
    },
    "search_r3.stages.pretrain.module.PretrainModule": {"micro_batch": COUNT},
    "search_r3.stages.sft.module.SFTModule": {"chunk_rows": or_null(COUNT), "seed": SEED},
    "search_r3.stages.sft.settings.SFTLosses": {
        "sft": NOT_NEGATIVE,
        "kl": NOT_NEGATIVE,
        "info_nce": NOT_NEGATIVE,
        "triplet": NOT_NEGATIVE,
        "reasoned": NOT_NEGATIVE,
        "temperature": POSITIVE,
        "margin": COSINE_DIFFERENCE,
        "false_negative_margin": COSINE_DIFFERENCE,
        "false_negative_share": SHARE,
        "extra.*.weight": NOT_NEGATIVE,
    },
    "search_r3.stages.sft.settings.SelfWritten": {
        "every_n_steps": EVERY_N_OR_NEVER,
        "share": SHARE,
        "temperature": NOT_NEGATIVE,  # 0 is greedy
    },
    "search_r3.stages.rl.module.RLModule": {
        "seed": SEED,
        "n_retrieved": COUNT,
        "rank_agreement_every_n_steps": EVERY_N_OR_NEVER,
        "token_budget": or_null(COUNT),
    },
    "search_r3.stages.rl.settings.RolloutSettings": {
        "group_size": Range(2, is_whole=True),
        "temperature": POSITIVE,
        "top_p": UP_TO_1,
        "max_new_tokens": or_null(COUNT),
    },
    "search_r3.stages.rl.settings.PolicySettings": {
        "clip_low": SHARE,
        "clip_high": NOT_NEGATIVE,
        "std_floor": NOT_NEGATIVE,
        "kl_weight": NOT_NEGATIVE,
        "n_updates": COUNT,
        "contrastive_weight": NOT_NEGATIVE,
        "contrastive_temperature": POSITIVE,
    },
    "search_r3.objectives.collapse.CollapseLimits": {
        "window": COUNT,
        "min_entropy": NOT_NEGATIVE,
        "min_length_share": SHARE,
        "max_flat_share": SHARE,
    },
    "search_r3.stages.rl.completions.Completions": {"every_n_steps": EVERY_N_OR_NEVER, "n_queries": COUNT},
    "search_r3.stages.checkpoint.TrainableCheckpoint": {"save_every_n_steps": or_null(COUNT)},
    "search_r3.stages.throughput.Throughput": {"log_every_n_steps": COUNT, "skip_first_n_steps": FROM_0},
    "search_r3.objectives.grpo.per_token": _LIMIT_OF_ROLLOUTS,
    "search_r3.objectives.grpo.per_sequence": _LIMIT_OF_ROLLOUTS,
    "search_r3.objectives.grpo.dr_grpo": _LIMIT_OF_ROLLOUTS,
    "search_r3.objectives.rewards.Reward": {
        "similarity_weight": NOT_NEGATIVE,
        "format_weight": NOT_NEGATIVE,
        "floor": or_null(Range(high=0)),
    },
    "search_r3.objectives.rewards.dcg": {"k": or_null(COUNT)},
    "search_r3.objectives.rewards.scaled_dcg": {"k": or_null(COUNT), "scale": POSITIVE},
    "search_r3.objectives.rewards.margin_dcg": {
        "k": or_null(COUNT),
        "tau": POSITIVE,
        "margin_weight": SHARE,
        "linear_share": SHARE,
    },
    "search_r3.index.rules.base.Refresh": {
        "budget": or_null(FROM_0),
        "budget.*": or_null(FROM_0),
        "every_n_steps": COUNT,
        "background": SHARE,
        "audit_every_n_steps": EVERY_N_OR_NEVER,
        "seed": SEED,
    },
    "search_r3.index.rules.candidates.Candidates": {"k": COUNT},
    "search_r3.index.rules.drift.Drift": {
        "n_sampled": Range(2, is_whole=True),
        "ridges.*": POSITIVE,
        "seed": SEED,
    },
    "search_r3.index.rules.neighbourhood.Graph": {"k": COUNT, "n_neighbours": COUNT, "hops": FROM_0},
    "search_r3.index.rules.certified.Certified": {
        "miscoverage": INNER,
        "window": COUNT,
        "rate": NOT_NEGATIVE,
        "cut_off": or_null(COUNT),
    },
    "search_r3.index.backends.ivf.IVFIndex": {
        "n_lists": or_null(COUNT),
        "n_probe": COUNT,
        "retrain_above": UP_TO_1,
        "seed": SEED,
    },
    "search_r3.index.backends.faiss_index.FaissIndex": {
        "n_probe": COUNT,
        "n_rescored": COUNT,
        "train_rows": COUNT,
        "retrain_above": POSITIVE,
        "seed": SEED,
    },
    "search_r3.index.backends.hnsw.HNSWIndex": {
        "n_links": COUNT,
        "ef_construction": COUNT,
        "ef_search": COUNT,
        "rebuild_above": POSITIVE,
    },
    "search_r3.benchmarks.drift.RecordedFull": {"group_size": COUNT},
}
"""Ranges of the arguments of what a `_target_` names; a star stands for any key or place below."""

TRAINER: Mapping[str, Range] = {
    "max_steps": COUNT,
    "min_steps": or_null(COUNT),
    "max_epochs": replace(or_null(COUNT), others=(None, -1)),
    "min_epochs": or_null(COUNT),
    "max_time": Range(
        others=(None,), takes_text=True, words="text as 00:12:30:00 (days, hours, minutes, seconds), or null"
    ),
    "max_time.*": FROM_0,
    "limit_train_batches": _BATCHES,
    "limit_val_batches": _BATCHES_OR_NONE,
    "limit_test_batches": _BATCHES_OR_NONE,
    "limit_predict_batches": _BATCHES_OR_NONE,
    "overfit_batches": replace(_BATCHES_OR_NONE, others=()),
    "fast_dev_run": replace(COUNT, others=(True, False)),
    "val_check_interval": replace(_BATCHES, takes_text=True),
    "check_val_every_n_epoch": or_null(COUNT),
    "num_sanity_val_steps": Range(-1, is_whole=True, others=(None,)),
    **dict.fromkeys(("log_every_n_steps", "accumulate_grad_batches"), COUNT),
    "gradient_clip_val": or_null(NOT_NEGATIVE),
    "reload_dataloaders_every_n_epochs": FROM_0,
    "devices": replace(COUNT, others=(-1,), takes_text=True),
    "devices.*": FROM_0,
    "num_nodes": COUNT,
    "precision": Range(others=(16, 32, 64, None), takes_text=True, words="16, 32, 64, a name, or null"),
}
"""Ranges of the arguments of Lightning's Trainer, in the nodes that are handed to it."""

COMMANDS: Mapping[str, Range] = {
    "seed": SEED,
    **dict.fromkeys(("k", "max_k", "n_steps", "n_trials", "shard_rows", "worker_cpus"), COUNT),
    **dict.fromkeys(("workers", "limit"), or_null(COUNT)),
    **dict.fromkeys(("pruner_warmup", "startup_trials", "in_memory_mib", "busy.*"), FROM_0),
    "top_k": Range(100, is_whole=True),  # the largest cut-off of the metrics, recall@100
    "max_new_tokens": or_null(FROM_0),
    "port": Range(0, 65535, is_whole=True),
    **dict.fromkeys(("max_query_characters", "max_requests", "threads.*", "rounds"), COUNT),
    **dict.fromkeys(("timeout_s", "max_seconds"), POSITIVE),
    "bm25.k1": NOT_NEGATIVE,
    "bm25.b": SHARE,
    **dict.fromkeys(("sizes.*.*", "n_documents"), Range(2, is_whole=True)),
    "audit_every_n_steps": EVERY_N_OR_NEVER,
    "offset": or_null(NOT_NEGATIVE),
}
"""Ranges of the keys that a command reads itself."""


@dataclass(frozen=True)
class Leaf:
    """A value of a configuration, and the table that knows it.

    Attributes:
        key: in the configuration.
        name: in the table.
        table: name of the callable, "Trainer", or "" for the command's own keys.
        value: whatever stands there; a mapping or a list is walked as well.
    """

    key: str
    name: str
    table: str
    value: object

    @property
    def declared(self) -> Mapping[str, Range]:
        """The table."""
        return {"": COMMANDS, "Trainer": TRAINER, **TARGETS}.get(self.table, {})

    @property
    def range(self) -> Range | None:
        """What is declared for it; None where nothing is."""
        return self._range_of(self.name)

    @property
    def refusal(self) -> str | None:
        """Why the value cannot stand there; None where it can."""
        if self.range is not None:
            return None if self.range.holds(self.value) else f"must be {self.range}"
        if self.value is not None and any(name.startswith(f"{self.name}.") for name in self.declared):
            return "must be a list or a mapping of numbers"
        parents = [self.name.rsplit(".", count)[0] for count in range(1, self.name.count(".") + 1)]
        whole = next(filter(None, map(self._range_of, parents)), None)
        return None if whole is None else f"there must be {whole}, and no list or mapping"

    def _range_of(self, name: str) -> Range | None:
        parts = name.split(".")
        for pattern, given in self.declared.items():
            wanted = pattern.split(".")
            pairs = zip(parts, wanted, strict=False)
            if len(parts) == len(wanted) and all(part == want or want == "*" for part, want in pairs):
                return given
        return None


def leaves(node: object, key: str = "", name: str = "", table: str = "") -> Iterator[Leaf]:
    """Every value of a plain configuration in order: what is neither mapping nor list, or is an empty one."""
    if isinstance(node, dict) and node:
        if key in TRAINER_NODES:
            name, table = "", "Trainer"
        if isinstance(node.get("_target_"), str):
            name, table = "", node["_target_"]
        for child, value in node.items():
            below = f"{key}.{child}" if key else str(child)
            yield from leaves(value, below, f"{name}.{child}" if name else str(child), table)
    elif isinstance(node, list) and node:
        for place, value in enumerate(node):
            yield from leaves(value, f"{key}.{place}", f"{name}.{place}", table)
    else:
        yield Leaf(key, name, table, node)


def check_numbers(config: Mapping) -> None:
    """Refuses a configuration with a number out of its range.

    Args:
        config: plain, with references resolved.

    Raises:
        UsageError: That names the first such key, its value and its range.
    """
    for leaf in leaves(dict(config)):
        if leaf.refusal is not None:
            value = repr(leaf.value) if isinstance(leaf.value, str) else spelled(leaf.value)
            raise UsageError(f"{leaf.key}={value}: {leaf.refusal}")
