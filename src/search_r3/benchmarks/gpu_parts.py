"""What `search_r3.benchmarks.gpu` measures: models of random weights, made-up texts, parts of a stage.

Operations are those of the decoder's products alone, two per weight and token that is no padding. Attention,
norms, the head and an adapter's own products are left out, so that a share of the limit is never flattered.
"""

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from search_r3.benchmarks.prefix import NANO, Work
from search_r3.benchmarks.timing import device_seconds
from search_r3.index.exact_rank import Positives
from search_r3.models import generation
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.folder.description import encoder_of, read_description
from search_r3.models.folder.weights import read_tokenizer
from search_r3.models.generation import Decoded, Sampling, SpecialIds, row_uniforms
from search_r3.models.prompts import Lengths
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.stages.gradient_cache import ChunkOutput, backward_with_cache
from search_r3.stages.optimization import OptimizationSettings, build_optimizer
from search_r3.stages.rl.policy import learnt_from, rows_loss
from search_r3.stages.rl.rollouts import Rollouts, group_batches, micro_batches
from search_r3.stages.rl.sampling import sample_rollouts
from search_r3.stages.rl.settings import PolicySettings
from search_r3.stages.sft.rows import Chunk, TokenRow

LORA = LoraTuning(r=32, alpha=64)
"""As `model=qwen2_5_1_5b`."""

_BF16, _FP32 = 2, 4
_FORWARD, _BACKWARD_FROZEN, _BACKWARD = 2, 2, 4
"""Operations per weight and token; a frozen weight has no gradient, which is half of a backward."""
_MEAN_WORDS, _SPREAD = 113, 0.5
"""Of the logarithm's normal distribution: 128 words on average, an eighth of texts below 60 or above 230."""
_LOGIT_CHUNK, _LOGIT_COPIES = 1024, 4
"""Positions whose logits exist at once, and how many copies of them in fp32."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of Qwen2's architecture; the head is tied to the embeddings."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    @property
    def n_weights(self) -> int:
        """Weights that every token of a forward is multiplied by: those of the layers' products."""
        kept = self.hidden * self.kv_heads // self.heads
        attention = 2 * self.hidden * (self.hidden + kept)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def n_head(self) -> int:
        """Weights of the head."""
        return self.hidden * self.vocabulary

    @property
    def keys_of_a_token(self) -> int:
        """Numbers that a token's keys and values are in all layers."""
        return 2 * self.layers * self.kv_heads * self.hidden // self.heads

    def decoding_bytes(self, prompts: Sequence[int], group_size: int, n_tokens: int) -> int:
        """Bytes that `n_tokens` steps of decoding must read, in bf16.

        A step reads each weight once, the head included, and the keys and values of all rows so far.

        Args:
            prompts: tokens of each prompt.
            group_size: `G` rollouts of each.
            n_tokens: of each rollout.
        """
        weights = n_tokens * (self.n_weights + self.n_head)
        so_far = sum(n_tokens * length + n_tokens * (n_tokens + 1) // 2 for length in prompts)
        return _BF16 * (weights + self.keys_of_a_token * group_size * so_far)


SHAPES = {
    "qwen2_5_1_5b": Shape(1536, 28, 12, 2, 8960, 151_936),
    "smollm2_135m": Shape(576, 30, 9, 3, 1536, 49_152),
    "tiny": Shape(64, 2, 4, 2, 128, 8448),
}


@dataclass(frozen=True)
class Limits:
    """What the device reached: operations per second of a bf16 product, bytes per second of a copy."""

    flops: float
    bytes: float


def measured_limits(device: torch.device) -> Limits:
    """The best of some rounds, behind one to warm up. A copy of `n` bytes moves `2 n`."""
    is_gpu = device.type == "cuda"
    # A CPU without bf16 products takes seconds for what a GPU does in a millisecond.
    width, n_products, n_rounds = (8192, 10, 5) if is_gpu else (512, 1, 2)
    left, right = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.ones(2**31 if is_gpu else 2**26, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def best(run: Callable[[], object], n_times: int) -> float:
        device_seconds(device, run, n_times)
        return min(device_seconds(device, run, n_times) / n_times for _ in range(n_rounds))

    product = best(lambda: left @ right, n_products)
    copy = best(lambda: target.copy_(source), n_products)
    return Limits(2 * width**3 / product, 2 * source.numel() / copy)


@dataclass(frozen=True)
class Bench:
    """Where and what is measured.

    Attributes:
        shape: of the model.
        device: of the model.
        token_budget: tokens of one forward.
        n_tokens: of a rollout.
        group_size: `G`.
    """

    shape: Shape
    device: torch.device
    token_budget: int = 16384
    n_tokens: int = 512
    group_size: int = 8

    def model(self, dtype: torch.dtype = torch.bfloat16) -> Qwen2ForCausalLM:
        """Random weights, drawn on the device."""
        shape = self.shape
        config = Qwen2Config(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads, max_position_embeddings=32768, initializer_range=0.02,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6}, rms_norm_eps=1e-6,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self.device:
            torch.manual_seed(0)
            return Qwen2ForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")

    def opened(
        self,
        tuning: LoraTuning | FullTuning | None = None,
        dtype: torch.dtype = torch.bfloat16,
        is_checkpointed: bool = False,
        token_budget: int | None = None,
    ) -> ReasoningEmbedder:
        """A model under the tokenizer and prompts of the shipped base, whose ids all have a row here.

        Which text the ids stand for does not matter for speed. Every token but the embed token may be
        written, so that rollouts reach their limit.

        Args:
            tuning: which weights are trained; None for inference.
            dtype: of the weights; an adapter's are fp32.
            is_checkpointed: recompute activations in the backward pass.
            token_budget: instead of the bench's.
        """
        description = read_description(NANO)
        tokenizer = read_tokenizer(NANO, local_files_only=True)
        encoder = encoder_of(NANO, description, tokenizer)
        model: nn.Module = self.model(dtype)
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        if tuning is not None:
            model = tuning.apply(model, encoder.embed_token_id)
        lengths = Lengths(query=256, document=512, reasoning=self.n_tokens)
        embedder = ReasoningEmbedder(
            model, tokenizer, encoder.prompts, lengths, token_budget or self.token_budget,
            is_trained=False, rendered=encoder.rendered,
        )  # fmt: skip
        embed = embedder.embed_token_id
        embedder.special_ids = SpecialIds(embed, frozenset(), (embed,), tokenizer.pad_token_id)
        return embedder.train(tuning is not None)

    def autocast(self) -> torch.autocast:
        """As the stages train: `strategy.precision=bf16-mixed`."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def cost(self, run: Callable[[], object]) -> tuple[float, float | None]:
        """Seconds of a call, and the most memory that was allocated meanwhile in GB; None without a GPU."""
        if self.device.type != "cuda":
            return device_seconds(self.device, run), None
        gc.collect()  # modules refer to themselves; the allocator's cache stays, or it would be timed
        torch.cuda.reset_peak_memory_stats(self.device)
        seconds = device_seconds(self.device, run)
        return seconds, torch.cuda.max_memory_allocated(self.device) / 1e9


def made_up(embedder: ReasoningEmbedder, n: int, mean: int, seed: int = 0) -> list[str]:
    """Texts of random words, each a token of the tokenizer; `mean` words on average, of log-normal spread."""
    vocabulary = embedder.tokenizer.get_vocab()
    words = sorted(token[1:] for token in vocabulary if token[:1] == "Ġ" and token[1:].isascii())
    words = [word for word in words if word.isalpha()]
    draw = random.Random(seed)
    sizes = (mean / 128 * _MEAN_WORDS * draw.lognormvariate(0, _SPREAD) for _ in range(n))
    return [" ".join(draw.choices(words, k=max(2, round(size)))) for size in sizes]


def encode(bench: Bench, limits: Limits | None, token_budget: int, n_documents: int) -> dict:
    """Documents and tokens per second of `embed_documents`, tokenizing included, in one budget of tokens.

    `model_s` is of `embed_ids` alone, and so is the share of the limit. The second of two passes is timed.
    """
    embedder = bench.opened(token_budget=token_budget)
    texts = made_up(embedder, n_documents, 128)
    sequences = embedder.encoder.documents(texts)
    n_tokens = sum(map(len, sequences))
    embedder.embed_ids(sequences)
    model_s, memory = bench.cost(lambda: embedder.embed_ids(sequences))
    seconds, _ = bench.cost(lambda: embedder.embed_documents(texts))
    return {
        "token_budget": token_budget,
        "documents": n_documents,
        "tokens": n_tokens,
        "longest": max(map(len, sequences)),
        "seconds": seconds,
        "model_s": model_s,
        "documents_per_s": n_documents / seconds,
        "tokens_per_s": n_tokens / seconds,
        "share_of_limit": utilisation(_FORWARD, bench.shape, n_tokens / model_s, limits),
        "peak_gb": memory,
    }


def utilisation(operations: int, shape: Shape, tokens_per_s: float, limits: Limits | None) -> float | None:
    """Share of the product's limit; None where that is not known.

    Args:
        operations: per weight and token.
        shape: has the weights.
        tokens_per_s: that are no padding.
        limits: of the device.
    """
    return None if limits is None else operations * shape.n_weights * tokens_per_s / limits.flops


def sft(
    bench: Bench, limits: Limits | None, n_rows: int, is_full: bool = False, is_checkpointed: bool = False
) -> dict:
    """Forward and backward of a chunk of SFT, of so many documents and as many direct queries.

    With LoRA an operation is counted for 4 x weights x tokens: 2 forward, and 2 for the gradient of the
    activations. Frozen products have no gradient of their weights, and an adapter's own are left out. Full
    tuning has 6, its weights are in fp32 under autocast. What is computed again under activation
    checkpointing is not counted. The best of three calls behind one to warm up.
    """
    tuning, dtype = (FullTuning(), torch.float32) if is_full else (LORA, torch.bfloat16)
    embedder = bench.opened(tuning, dtype, is_checkpointed)
    encoder = embedder.encoder
    documents = encoder.documents(made_up(embedder, n_rows, 128))
    queries = encoder.queries(made_up(embedder, n_rows, 16, seed=1))
    chunk = Chunk(
        tuple(TokenRow.ending(ids, len(ids)) for ids in documents),
        tuple(TokenRow.ending(ids, len(ids) - 1) for ids in queries),
    )
    work = Work(embedder, chunk, "bf16")
    n_tokens = sum(len(row.ids) for row in chunk.embedded)
    work.train()
    costs = [bench.cost(work.train) for _ in range(3)]
    seconds = min(seconds for seconds, _ in costs)
    operations = _FORWARD + (_BACKWARD if is_full else _BACKWARD_FROZEN)
    return {
        "rows": 2 * n_rows,
        "tokens": n_tokens,
        "operations": operations,
        "seconds": seconds,
        "tokens_per_s": n_tokens / seconds,
        "share_of_limit": utilisation(operations, bench.shape, n_tokens / seconds, limits),
        "peak_gb": costs[-1][1],
    }


def sampled(bench: Bench, embedder: ReasoningEmbedder, queries: Sequence[str], n_tokens: int) -> Rollouts:
    """`G` rollouts of each query, all of them at once."""
    longest = max(map(len, embedder.encoder.reasoning_prompts(queries)))
    embedder.decoding_budget = len(queries) * bench.group_size * (longest + n_tokens + 1)
    names = [str(place) for place in range(len(queries))]
    return sample_rollouts(
        embedder, names, list(queries), Sampling(n_tokens, 1.0), bench.group_size, seed=0, step=0
    )


def decode(bench: Bench, limits: Limits | None, n_queries: int, graphs: bool) -> dict:
    """Tokens per second of rollouts that all reach the limit, and the share of the copy's bytes per second.

    The model is held in bf16 without an adapter, as it is evaluated; all rollouts are decoded at once, and
    not in parts as `embedder.decoding_budget` would have it. Prompts are read within the time, and steps are
    captured, where they are graphs.
    """
    embedder = bench.opened()
    prompts = embedder.encoder.reasoning_prompts(made_up(embedder, n_queries, 16, seed=1))

    def written(n_tokens: int) -> Decoded:
        draws = row_uniforms(0, range(n_queries * bench.group_size), n_tokens)
        return generation.decode(
            embedder.decoder, embedder.logits, prompts, embedder.special_ids, Sampling(n_tokens, 1.0), draws,
            bench.group_size, graphs=graphs,
        )  # fmt: skip

    written(min(8, bench.n_tokens))
    found: list[Decoded] = []
    seconds, memory = bench.cost(lambda: found.append(written(bench.n_tokens)))
    n_written = sum(map(len, found[0].token_ids))
    n_bytes = bench.shape.decoding_bytes([*map(len, prompts)], bench.group_size, bench.n_tokens)
    return {
        "queries": n_queries,
        "group_size": bench.group_size,
        "graphs": graphs,
        "tokens": n_written,
        "seconds": seconds,
        "ms_per_step": 1000 * seconds / bench.n_tokens,
        "tokens_per_s": n_written / seconds,
        "bytes": n_bytes,
        "share_of_limit": None if limits is None else n_bytes / seconds / limits.bytes,
        "peak_gb": memory,
    }


class Grpo:
    """Steps of GRPO with LoRA on the same rollouts: those of a fresh adapter, which changes nothing yet.

    A rollout's reward is its place in the group, so that all groups teach.

    Args:
        bench: has group size and tokens.
        n_queries: of a step.
    """

    def __init__(self, bench: Bench, n_queries: int) -> None:
        self.bench, self.n_queries = bench, n_queries

    @cached_property
    def sampling(self) -> tuple[Rollouts, float, float | None]:
        """Rollouts, their seconds and the most memory in GB; under autocast, as the stage samples."""
        bench, embedder = self.bench, self.bench.opened(LORA)
        queries = made_up(embedder, self.n_queries, 16, seed=1)
        found: list[Rollouts] = []

        def run(n_tokens: int) -> None:
            with bench.autocast():
                found.append(sampled(bench, embedder, queries, n_tokens))

        run(min(8, bench.n_tokens))
        seconds, memory = bench.cost(lambda: run(bench.n_tokens))
        return found[-1], seconds, memory

    def step(self, is_checkpointed: bool, token_budget: int) -> dict:
        """Seconds and memory of forward, backward and AdamW; of two steps the second, which has all states.

        Args:
            is_checkpointed: recompute activations; else prompts are shared.
            token_budget: tokens of one forward; a group is not split where prompts are shared.
        """
        rollouts, sampling_s, sampling_gb = self.sampling
        bench = self.bench
        embedder = bench.opened(LORA, is_checkpointed=is_checkpointed, token_budget=token_budget)
        parameters = [each for each in embedder.parameters() if each.requires_grad]
        settings = PolicySettings(clip_low=0.2, clip_high=0.2, std_floor=0.0)
        optimizer = build_optimizer(embedder.named_parameters(), OptimizationSettings(1e-6, weight_decay=0.0))
        rewards = torch.arange(bench.group_size).float().expand(self.n_queries, -1)
        nothing = torch.full((self.n_queries, 1), -1)
        batches = (micro_batches if is_checkpointed else group_batches)(rollouts, token_budget)

        def learn() -> None:
            optimizer.zero_grad(set_to_none=True)
            positives = Positives(nothing, nothing.float())
            learnt = learnt_from(rollouts, rewards.to(bench.device), positives, None, settings)

            def part(rows: Sequence[int]) -> ChunkOutput:
                loss, metrics = rows_loss(embedder, learnt, rows, settings, True, not is_checkpointed)
                return ChunkOutput(extra_loss=loss, metrics=metrics)

            with bench.autocast():
                backward_with_cache(batches, part, None, torch.Tensor.backward)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            torch.clear_autocast_cache()

        learn()
        seconds, memory = bench.cost(learn)
        n_trained = sum(each.numel() for each in parameters)
        n_kept = int((rollouts.prompt_lengths + rollouts.sampling.max_new_tokens).sum()) * bench.group_size
        return {
            "queries": self.n_queries,
            "group_size": bench.group_size,
            "tokens": int(rollouts.n_tokens.sum()),
            "token_budget": token_budget,
            "forwards": len(batches),
            "is_checkpointed": is_checkpointed,
            "sampling_s": sampling_s,
            "learning_s": seconds,
            "seconds": sampling_s + seconds,
            "sampling_tokens_per_s": int(rollouts.n_tokens.sum()) / sampling_s,
            "sampling_peak_gb": sampling_gb,
            "peak_gb": memory,
            "arithmetic": arithmetic(bench.shape, n_trained, n_kept, token_budget, is_checkpointed),
        }


def arithmetic(
    shape: Shape, n_trained: int, n_kept: int, n_tokens: int, is_checkpointed: bool
) -> dict[str, float | None]:
    """Memory in GB as docs/scaling.md counts it, term by term, and the sums of sampling and of learning.

    Args:
        shape: of the model.
        n_trained: weights of the adapter; each has a gradient and two moments, all in fp32.
        n_kept: tokens whose keys and values are held while sampling.
        n_tokens: of one training forward.
        is_checkpointed: whether a layer's input alone is kept per token, and one layer recomputed; what all
            activations take has no term there, so None.
    """
    weights = _BF16 * (shape.n_weights + shape.n_head)
    adapter, keys = 4 * _FP32 * n_trained, _BF16 * shape.keys_of_a_token * n_kept
    inputs = _BF16 * shape.layers * shape.hidden * n_tokens
    layer = _BF16 * (4 * shape.intermediate + 16 * shape.hidden) * n_tokens
    logits = _FP32 * _LOGIT_CHUNK * _LOGIT_COPIES * shape.vocabulary
    terms = {
        "weights": weights,
        "adapter": adapter,
        "keys_and_values": keys,
        "activations": inputs + layer if is_checkpointed else None,
        "logits": logits,
        "sampling": weights + adapter + keys,
        "learning": weights + adapter + inputs + layer + logits if is_checkpointed else None,
    }
    return {name: None if value is None else value / 1e9 for name, value in terms.items()}
