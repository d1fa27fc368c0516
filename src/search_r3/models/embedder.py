"""The reasoning embedder: a causal language model whose state at one special token is the embedding.

There is no projection head. A document and a directly embedded query are one forward; a reasoned query is
written first and embedded in the same pass. Every text of the project becomes a vector here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from search_r3.models.attention import leave_out_cudnn
from search_r3.models.batching import decoding_budget, forward_cost, length_batches, tokens_that_fit
from search_r3.models.dropout import without_dropout
from search_r3.models.generation import Sampling, SpecialIds, decode, row_uniforms
from search_r3.models.logits import decoder_of, decoder_path, own_logits, state_width
from search_r3.models.prefix import Prefix, common_prefix, pad_left, position_ids, remembers_keys
from search_r3.models.prompts import EMBED_TOKEN, Lengths, PromptEncoder, Prompts, Rendered
from search_r3.models.threads import threads_for
from search_r3.models.tuning import base_model
from search_r3.models.vocabulary import give_pad_token, special_ids, unused_ids
from search_r3.progress import Progress


@dataclass(frozen=True)
class Reasoned:
    """Reasonings of `N` queries, in the caller's order.

    Attributes:
        texts: what was written before the embed token.
        token_ids: the same as ids.
        embeddings: `[N, D]` fp32 on the CPU, unit norm.
        n_tokens: written tokens, the embed token not counted.
        has_embed_token: True where the model wrote the token itself; elsewhere it was appended.
    """

    texts: list[str]
    token_ids: list[list[int]]
    embeddings: Tensor
    n_tokens: list[int]
    has_embed_token: list[bool]


ReadState = Literal["at", "before"]

SHARED_FROM = 8
"""Ids. A shorter beginning is run with every text: with the 3 of the shipped base 64 texts gain 4 to 20 %."""

SAVED_FROM = 128
"""Ids. The forward over what is shared must save so many: for two texts it takes longer than it saves."""


class ReasoningEmbedder(nn.Module):
    """Embeds documents and queries, and reasons about queries.

    Args:
        model: a causal language model, or a PEFT model around one.
        tokenizer: with the embed token; gets a pad token where it has none.
        prompts: the wording around a text.
        lengths: the limits in tokens.
        token_budget: the most tokens, padding included, in one forward at inference.
        weights_sha256: hash of the weights as saved; None where the model is not a saved one.
        is_trained: whether the weights come from training; KL to an untrained base means nothing.
        rendered: the prompts as a model folder keeps them; None renders them now.
        embed_token: whose state is the embedding.
        config_sha256: hash of the configuration, of a folder whose files nothing else vouches for.
        read_state: "at" reads the state at the embed token; "before" that of the token before it, which
            predicts it: an ablation, for inference alone.

    Raises:
        ValueError: If `read_state` is something else.

    Attributes:
        shared_from: the fewest ids that texts must begin with to share them.
        saved_from: the fewest ids that sharing must save in a call.
        splits_batches: whether a batch is split where less padding pays for one more forward.
    """

    can_reason = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        lengths: Lengths,
        token_budget: int = 16384,
        weights_sha256: str | None = None,
        is_trained: bool = True,
        rendered: Rendered | None = None,
        embed_token: str = EMBED_TOKEN,
        config_sha256: str | None = None,
        read_state: ReadState = "at",
    ) -> None:
        super().__init__()
        if read_state not in get_args(ReadState):
            raise ValueError(f"read_state must be at or before, got {read_state!r}")
        give_pad_token(tokenizer)
        leave_out_cudnn()
        self.model = model
        self.tokenizer = tokenizer
        self.encoder = PromptEncoder(tokenizer, prompts, lengths, rendered, embed_token)
        self.token_budget = token_budget
        self.is_trained, self.read_state = is_trained, read_state
        self.shared_from, self.saved_from = SHARED_FROM, SAVED_FROM
        self.splits_batches = True
        self._decoding_budget: int | None = None
        self._weights_sha256, self._config_sha256 = weights_sha256, config_sha256

    @property
    def causal_lm(self) -> PreTrainedModel:
        return base_model(self.model)

    @property
    def decoder(self) -> nn.Module:
        """The transformer without its head; its last hidden state has passed the final norm."""
        return decoder_of(self.causal_lm)

    @cached_property
    def _decoder_path(self) -> tuple[str, ...]:
        return decoder_path(self.causal_lm)

    def logits(self, states: Tensor) -> Tensor:
        """The model's own logits `[n, V]` of states `[n, D]`: scale, cap and bias included.

        Every loss, log-probability and sampled token comes from here.
        """
        return own_logits(self.causal_lm, self._decoder_path, states)

    @property
    def vocabulary_size(self) -> int:
        """Rows `V` of the head, spare ones included."""
        # not .weight: PEFT makes a matrix of it where rows of the head are trained
        return max(each.shape[0] for each in self.causal_lm.get_output_embeddings().parameters())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def forward_cost(self) -> int | None:
        """What `length_batches` counts for one more forward, in tokens; None where no batch is split."""
        return forward_cost(self.token_budget, self.device) if self.splits_batches else None

    @property
    def decoding_budget(self) -> int:
        """The most tokens, prompts included, that are decoded at once: what was set, or suits the device."""
        if self._decoding_budget is not None:
            return self._decoding_budget
        least = decoding_budget(self.token_budget)
        if self.device.type != "cuda":
            return least
        return max(least, tokens_that_fit(self.device, self.bytes_per_token))

    @decoding_budget.setter
    def decoding_budget(self, n_tokens: int | None) -> None:
        self._decoding_budget = n_tokens

    @property
    def bytes_per_token(self) -> int:
        """What a token's keys and values take in all layers; of a model that keeps others, about.

        They are kept as the weights are: under autocast, which leaves the states in that precision, as well.
        """
        config = self.causal_lm.config.get_text_config()
        layers = getattr(config, "per_layer_config", [config] * config.num_hidden_layers)
        return 2 * sum(map(_key_width, layers)) * next(self.model.parameters()).element_size()

    @property
    def dtype_name(self) -> str:
        """Dtype of the weights, as "bfloat16"; under LoRA that of the frozen ones."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def embed_token_id(self) -> int:
        return self.encoder.embed_token_id

    @property
    def width(self) -> int:
        """Dimension `D` of an embedding."""
        return state_width(self.causal_lm.config)

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights as they were read; what training does to them later is not in it.

        Raises:
            ValueError: If this model was not read from a folder; every reported number is taken from one.
        """
        if self._weights_sha256 is None:
            raise ValueError("only a model read from a folder has a weight hash; save it and load the folder")
        return self._weights_sha256

    @cached_property
    def document_key(self) -> dict[str, str]:
        """What a cached document embedding depends on, besides the document."""
        dtype = f"torch.{self.dtype_name}"
        key = {"weights": self.weights_sha256, "prompts": self.encoder.fingerprint, "dtype": dtype}
        key |= {} if self._config_sha256 is None else {"config": self._config_sha256}
        return key | ({} if self.read_state == "at" else {"read_state": self.read_state})

    @cached_property
    def special_ids(self) -> SpecialIds:
        """What ends a reasoning, and what it never contains: special tokens that neither end it nor embed.

        Ids that are no token (spare rows of a large vocabulary, holes) cannot be decoded and are banned too.
        """
        configured = self.causal_lm.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured, self.tokenizer.eos_token_id]
        stops = frozenset(token for token in ids if token is not None) - {self.embed_token_id}
        special = special_ids(self.tokenizer) - {self.embed_token_id} - stops
        spare = unused_ids(self.tokenizer, self.vocabulary_size)
        banned = tuple(sorted(each for each in {*special, *spare} if each < self.vocabulary_size))
        return SpecialIds(self.embed_token_id, stops, banned, self.tokenizer.pad_token_id)

    def hidden_states(self, input_ids: Tensor, mask: Tensor, prefix: Prefix | None = None) -> Tensor:
        """States `[B, L, D]` after the final norm of left-padded ids `[B, L]`; `mask` is True at tokens.

        With the prefix of length `P` that all rows begin with, those behind the first `P` slots alone:
        `[B, L - P, D]`. They hold the state of every token that is none of the prefix.
        """
        if prefix is not None and prefix.n_ids:
            return prefix.states(self.decoder, input_ids, mask, prefix.spread(mask))
        return self.decoder(
            input_ids=input_ids,
            attention_mask=mask.long(),
            position_ids=position_ids(mask),
            use_cache=False,
        ).last_hidden_state

    def prefix_of(self, sequences: Sequence[Sequence[int]], most: int | None = None) -> Prefix:
        """What all `sequences` begin with, run once, where that pays; else an empty prefix.

        It is no longer than the longest beginning of a prompt, so that arithmetic, and with it the last bits
        of a vector, does not depend on how the texts of a call happen to begin.

        Args:
            sequences: any number.
            most: the most ids that may be shared; None leaves it to prompts and sequences.
        """
        longest = max(len(template.prefix) for template in self.encoder.templates)
        most = longest if most is None else min(longest, most)
        n_shared = common_prefix(sequences, most) if len(sequences) > 1 and self.keeps_keys else 0
        pays = n_shared >= self.shared_from and (len(sequences) - 1) * n_shared >= self.saved_from
        return Prefix.of(self.decoder, sequences[0][:n_shared] if pays else ())

    @property
    def keeps_keys(self) -> bool:
        """Whether what the model remembers of a text is keys and values alone, and is kept in this mode.

        Not so where a state runs along (Mamba, convolutions), nor where activations are recomputed.
        """
        model = self.causal_lm
        recomputes = self.model.training and model.is_gradient_checkpointing
        return not recomputes and remembers_keys(model)

    def embed_ids(
        self, sequences: Sequence[Sequence[int]], progress: bool = False, what: str = "texts"
    ) -> Tensor:
        """Embeddings `[N, D]`, fp32 on the CPU, unit norm, of sequences that end with the embed token.

        What all of them begin with is run once for all batches. A batch still counts whole sequences, since
        it holds the keys and values of every token.
        """
        if self.read_state == "before":
            sequences = [sequence[:-1] for sequence in sequences]  # its state is then that of the last token
            if not all(sequences):
                raise ValueError("read_state=before needs a prompt: a sequence is the embed token alone")
        lengths = [len(sequence) for sequence in sequences]
        result = torch.empty(len(sequences), self.width)
        with self._inference(sum(lengths)), Progress(len(sequences), "embed", what, progress) as bar:
            prefix = self.prefix_of(sequences)
            for rows in length_batches(lengths, self.token_budget, self.forward_cost):
                ids, mask = pad_left(
                    [sequences[row] for row in rows], self.tokenizer.pad_token_id, self.device
                )
                last = self.hidden_states(ids, mask, prefix)[:, -1]
                result[rows] = normalize(last.float(), dim=-1).cpu()
                bar.update(len(rows))
        return result

    def embed_documents(self, texts: Sequence[str], progress: bool = False) -> Tensor:
        """Embeddings `[N, D]` of documents, fp32 on the CPU, unit norm, in the caller's order."""
        return self.embed_documents_and_count(texts, progress)[0]

    def embed_documents_and_count(self, texts: Sequence[str], progress: bool = False) -> tuple[Tensor, int]:
        """As `embed_documents`, and how many of the documents are cut."""
        ids, n_cut = self.encoder.documents_and_cut(texts)
        return self.embed_ids(ids, progress, "documents"), n_cut

    def embed_queries(self, texts: Sequence[str], progress: bool = False) -> Tensor:
        """Embeddings `[N, D]` of queries without reasoning, fp32 on the CPU, unit norm."""
        return self.embed_ids(self.encoder.queries(texts), progress, "queries")

    def embed_reasoned(
        self, texts: Sequence[str], reasonings: Sequence[str], progress: bool = False
    ) -> Tensor:
        """Embeddings `[N, D]` of queries with a given reasoning, fp32 on the CPU, unit norm."""
        ids = self.encoder.reasonings(reasonings)
        return self.embed_ids(self.reasoned_ids(texts, ids), progress, "reasoned queries")

    def embed_cuts(self, text: str, reasoning: Sequence[int], cuts: Sequence[int]) -> Tensor:
        """Embeddings `[C, D]` of one query with the embed token forced at `C` places of its reasoning.

        Prompt and reasoning are run once; the embed token continues their keys and values at every place. A
        model that keeps none runs every beginning on its own.

        Args:
            text: the query.
            reasoning: `R` token ids, without the embed token.
            cuts: how many of them come before the token, each from 0 to `R`.

        Returns:
            fp32 on the CPU, unit norm, those of `embed_ids` for the same sequences to rounding.

        Raises:
            ValueError: If a cut is not within the reasoning.
        """
        if not all(0 <= cut <= len(reasoning) for cut in cuts):
            raise ValueError(f"cuts must be from 0 to {len(reasoning)}, got {list(cuts)}")
        prompt = self.encoder.reasoning_prompts([text])[0]
        if not (cuts and self.keeps_keys) or self.read_state == "before":
            return self.embed_ids([[*prompt, *reasoning[:cut], self.embed_token_id] for cut in cuts])
        whole = [*prompt, *reasoning[: max(cuts)]]
        n_padding = torch.as_tensor([max(cuts) - cut for cut in cuts], device=self.device)
        result = torch.empty(len(cuts), self.width)
        with self._inference(len(whole) + len(cuts)):
            prefix = Prefix.of(self.decoder, whole)
            for rows in length_batches([len(whole) + 1] * len(cuts), self.token_budget):
                mask = torch.arange(len(whole) + 1, device=self.device) >= n_padding[rows, None]
                ids = torch.full_like(mask, self.embed_token_id, dtype=torch.long)  # only the last is read
                last = self.hidden_states(ids, mask, prefix)[:, -1]
                result[rows] = normalize(last.float(), dim=-1).cpu()
        return result

    def reasoned_ids(self, texts: Sequence[str], reasonings: Sequence[Sequence[int]]) -> list[list[int]]:
        """Prompt, reasoning and embed token as whole sequences."""
        prompts = self.encoder.reasoning_prompts(texts)
        return [
            [*prompt, *reasoning, self.embed_token_id]
            for prompt, reasoning in zip(prompts, reasonings, strict=True)
        ]

    def reason(
        self,
        texts: Sequence[str],
        seed: int = 0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        progress: bool = False,
        max_new_tokens: int | None = None,
        heard: Callable[[int, int], None] | None = None,
    ) -> Reasoned:
        """Writes a reasoning for every query and embeds it, in the same pass where `read_state` is "at".

        Sampling is seeded by (seed, position in `texts`): neither batch nor budget changes what is written.

        Args:
            texts: `N` queries.
            seed: of sampling; unused at temperature 0.
            temperature: 0 is greedy.
            top_p: nucleus of sampling.
            progress: whether to show a bar.
            max_new_tokens: the most tokens of reasoning; `lengths.reasoning` where None.
            heard: called with a query's place in `texts` and a token of its reasoning as each one is written.
        """
        limit = self.encoder.lengths.reasoning if max_new_tokens is None else max_new_tokens
        sampling = Sampling(limit, temperature, top_p, self.encoder.lengths.repeat_ngram)
        prompts = self.encoder.reasoning_prompts(texts)
        token_ids: list[list[int]] = [[] for _ in prompts]
        has_embed_token = [False] * len(prompts)
        embeddings = torch.empty(len(prompts), self.width)
        lengths = [len(prompt) + limit + 1 for prompt in prompts]
        n_read = sum(len(prompt) for prompt in prompts)
        with self._inference(n_read), Progress(len(prompts), "reason", "queries", progress) as bar:
            for rows in length_batches(lengths, self.decoding_budget):
                decoded = decode(
                    self.decoder,
                    self.logits,
                    [prompts[row] for row in rows],
                    self.special_ids,
                    sampling,
                    None if temperature == 0.0 else row_uniforms(seed, rows, limit),
                    heard=None if heard is None else partial(_heard_in_order, heard, rows),
                )
                embeddings[rows] = normalize(decoded.hidden.float(), dim=-1).cpu()
                for row, ids, has in zip(rows, decoded.token_ids, decoded.has_embed_token, strict=True):
                    token_ids[row], has_embed_token[row] = ids, has
                bar.update(len(rows))
        if self.read_state == "before":
            embeddings = self.embed_ids(self.reasoned_ids(texts, token_ids))
        written = [text.strip() for text in self.tokenizer.batch_decode(token_ids)] if token_ids else []
        return Reasoned(written, token_ids, embeddings, [len(ids) for ids in token_ids], has_embed_token)

    def query_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that are read of queries without reasoning, prompts included and the embed token not."""
        return sum(len(ids) - 1 for ids in self.encoder.queries(texts))

    def truncated_count(self, texts: Sequence[str], kind: str) -> int:
        """How many texts are cut; `kind` is "query", "document" or "reasoning"."""
        return self.encoder.truncated_count(texts, kind)

    def limit(self, kind: str) -> str:
        """The most tokens that are read of a text, with the key that sets it."""
        return f"lengths.{kind}={getattr(self.encoder.lengths, kind)}"

    @cached_property
    def _layer_weights(self) -> float:
        """Weights of a layer, on average."""
        looked_up = set(self.causal_lm.get_input_embeddings().parameters())
        n_weights = sum(each.numel() for each in self.decoder.parameters() if each not in looked_up)
        return n_weights / self.causal_lm.config.get_text_config().num_hidden_layers

    @contextmanager
    def _inference(self, n_tokens: int) -> Iterator[None]:
        """No gradient and no dropout within, and one thread where `n_tokens` are too few for several.

        Every module's mode is restored on leaving; walking through all modules takes a twentieth of a query's
        time, so a model that is not training is left alone.
        """
        quiet = without_dropout(self.model, False) if self.model.training else nullcontext()
        with quiet, torch.no_grad(), threads_for(n_tokens * self._layer_weights):
            yield


def _key_width(layer: PreTrainedConfig) -> int:
    """Numbers of a token's key in a layer, all heads together."""
    n_queries = getattr(layer, "num_attention_heads", None) or 1
    n_heads = getattr(layer, "num_key_value_heads", None) or n_queries
    return n_heads * (getattr(layer, "head_dim", None) or layer.hidden_size // n_queries)


def _heard_in_order(heard: Callable[[int, int], None], rows: Sequence[int], row: int, token: int) -> None:
    heard(rows[row], token)
