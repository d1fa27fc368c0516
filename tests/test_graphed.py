"""Steps on fixed tensors are the plain ones: all of decoding in CUDA graphs but capture and replay."""

import logging
from itertools import chain, pairwise
from weakref import WeakSet

import pytest
import torch
from architectures import CONFIGS, EAGER_ONLY, WINDOW, build
from conftest import LENGTHS, PROMPTS, QUERIES, TEXTS, build_embedder
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

from search_r3.models import graphed
from search_r3.models.embedder import ReasoningEmbedder
from search_r3.models.generation import Sampling, SpecialIds, decode, row_uniforms
from search_r3.models.graphed import narrowest_window
from search_r3.models.nano import train_tokenizer
from search_r3.models.tuning import LoraTuning

CLOSE = {"atol": 2e-5, "rtol": 1e-5}
WINDOWED = {
    name
    for name, (_, settings) in CONFIGS.items()
    if settings.get("sliding_window") == WINDOW or "layer_types" in settings
}
ENDERS = frozenset(range(300, 330))
"""Tokens that end a row here: a twelfth of an untrained model's."""


@pytest.fixture(autouse=True)
def _nothing_has_failed(monkeypatch):
    monkeypatch.setattr(graphed, "_failed", WeakSet())
    monkeypatch.setattr(graphed, "_warned", [])


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


class Steps:
    """What a decoder is asked while this is open: rows and slots of each step, and whether they are fixed."""

    def __init__(self, embedder):
        self.decoder, self.seen = embedder.decoder, []

    def __enter__(self):
        self.hook = self.decoder.register_forward_pre_hook(self.note, with_kwargs=True)
        return self

    def note(self, decoder, args, kwargs):
        if kwargs["input_ids"].shape[1] == 1 and kwargs.get("position_ids") is not None:
            mask = kwargs["attention_mask"]
            self.seen.append((len(mask), mask.shape[-1], mask.ndim == 4))

    def __exit__(self, *_):
        self.hook.remove()

    @property
    def are_fixed(self):
        return [is_fixed for _, _, is_fixed in self.seen]


def both_ways(embedder, sampling, group_size=1, stops=None, queries=QUERIES, seed=0):
    """Decoded and heard, the plain way and on fixed tensors, and what the second asked of the decoder."""
    prompts = embedder.encoder.reasoning_prompts(queries)
    special = embedder.special_ids
    special = special if stops is None else SpecialIds(special.embed, stops, special.banned, special.pad)
    uniforms = row_uniforms(seed, range(len(prompts) * group_size), sampling.max_new_tokens)
    embedder.eval()
    found = []
    for graphs in (False, True):
        heard = []
        with Steps(embedder) as steps:
            decoded = decode(
                embedder.decoder, embedder.logits, prompts, special, sampling,
                uniforms if sampling.temperature else None, group_size,
                lambda row, token, heard=heard: heard.append((row, token)), graphs,
            )  # fmt: skip
        found.append((decoded, heard))
    return *found, steps


def assert_alike(plain, fixed, **close):
    (ours, heard), (theirs, heard_too) = plain, fixed
    assert ours.token_ids == theirs.token_ids
    assert ours.has_embed_token == theirs.has_embed_token
    assert heard == heard_too
    assert [len(values) for values in ours.log_probs] == [len(values) for values in theirs.log_probs]
    torch.testing.assert_close(
        torch.tensor(list(chain(*ours.log_probs))),
        torch.tensor(list(chain(*theirs.log_probs))),
        **(close or CLOSE),
    )
    torch.testing.assert_close(ours.hidden, theirs.hidden, **(close or CLOSE))


SAMPLINGS = {
    "greedy": Sampling(10),
    "sampled": Sampling(10, 1.3),
    "nucleus": Sampling(10, 1.3, 0.8),
    "no repetition": Sampling(10, 0.3, 1.0, 2),
    "nothing": Sampling(0, 1.0),
    "one token": Sampling(1, 1.0),
}


@pytest.mark.parametrize("how", SAMPLINGS)
@pytest.mark.parametrize("group_size", [1, 3])
def test_fixed_steps_write_what_plain_ones_write(embedder, how, group_size):
    plain, fixed, steps = both_ways(embedder, SAMPLINGS[how], group_size, ENDERS)
    assert steps.are_fixed
    assert all(steps.are_fixed)
    assert_alike(plain, fixed)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_fixed_steps_are_the_plain_ones_of_every_architecture(name, attention, tokenizer):
    attention = "eager" if name == "gemma2" else attention
    model = build(name, len(tokenizer), attention)
    embedder = ReasoningEmbedder(model, tokenizer, PROMPTS, LENGTHS, is_trained=False)
    queries = [*QUERIES, TEXTS[0], "x"]
    plain, fixed, steps = both_ways(embedder, Sampling(12, 1.0), 2, queries=queries)
    assert len(steps.seen) > 6
    assert set(steps.are_fixed) == {name not in WINDOWED}  # beyond a window the plain steps are taken
    assert_alike(plain, fixed)


@pytest.mark.parametrize("name", sorted(WINDOWED))
def test_a_window_that_no_row_reaches_is_none_though_other_layers_attend_to_all(name, tokenizer, monkeypatch):
    settings = CONFIGS[name][1]
    wide = {"local_attention": 256} if name == "modernbert" else {"sliding_window": 128}
    monkeypatch.setitem(CONFIGS, name, (CONFIGS[name][0], settings | wide))
    model = build(name, len(tokenizer), "eager" if name in EAGER_ONLY else "sdpa")
    embedder = ReasoningEmbedder(model, tokenizer, PROMPTS, LENGTHS, is_trained=False)
    plain, fixed, steps = both_ways(embedder, Sampling(12, 1.0))
    assert steps.are_fixed
    assert all(steps.are_fixed)
    assert_alike(plain, fixed)


def gpt_neo(window, vocab_size):
    """Its local layer, beside a global one, counts a window under another name, and in slots."""
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256}
    kinds = {"attention_types": [[["global", "local"], 1]], "window_size": window}
    config = GPTNeoConfig(**sizes, **kinds, vocab_size=vocab_size, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.mark.parametrize(("window", "is_fixed"), [(8, False), (50, False), (200, True)])
def test_a_window_of_some_layers_under_another_name_is_heeded(window, is_fixed, tokenizer):
    model = gpt_neo(window, len(tokenizer))
    embedder = ReasoningEmbedder(model, tokenizer, PROMPTS, LENGTHS, is_trained=False)
    plain, fixed, steps = both_ways(embedder, Sampling(30, 1.0), 2)
    assert set(steps.are_fixed) == {is_fixed}
    assert_alike(plain, fixed)


def test_the_narrowest_window_of_all_layers_counts():
    assert narrowest_window(LlamaConfig()) is None
    assert narrowest_window(Qwen2Config(use_sliding_window=False, sliding_window=8)) is None
    assert narrowest_window(MistralConfig(sliding_window=8)) == 8
    assert narrowest_window(GPTNeoConfig(window_size=8)) == 8
    own = {"use_sliding_window": True, "num_hidden_layers": 2, "per_layer_config": {1: {"sliding_window": 8}}}
    assert narrowest_window(Qwen2Config(**own, sliding_window=64)) == 8


def test_rows_are_copied_together_when_half_have_ended_and_slots_are_read_as_they_fill(embedder, monkeypatch):
    monkeypatch.setattr(graphed, "SLOTS", 16)
    plain, fixed, steps = both_ways(embedder, Sampling(90, 1.0), 10, frozenset(range(300, 306)))
    assert_alike(plain, fixed)
    assert all(steps.are_fixed)
    rows = list(dict.fromkeys(n for n, _, _ in steps.seen))
    assert rows[0] == 50
    assert len(rows) > 2
    assert all(2 * fewer <= more for more, fewer in pairwise(rows))
    assert len({n_slots for _, n_slots, _ in steps.seen}) > 2
    lengths = {len(ids) for ids in plain[0].token_ids}
    assert max(lengths) > 40  # rows went on behind the copies
    assert len(lengths) > 10


def test_lora_and_autocast_decode_on_fixed_tensors(embedder):
    embedder.model = LoraTuning(r=4, alpha=8).apply(embedder.model, embedder.embed_token_id)
    with torch.no_grad():
        for name, value in embedder.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3)
    embedder.eval()
    plain, fixed, steps = both_ways(embedder, Sampling(10, 1.0), 2, ENDERS)
    assert all(steps.are_fixed)
    assert_alike(plain, fixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, fixed, steps = both_ways(embedder, Sampling(10, 1.0), 2, ENDERS)
    assert all(steps.are_fixed)
    same = [one == other for one, other in zip(plain[0].token_ids, fixed[0].token_ids, strict=True)]
    assert sum(same) >= 9  # of 10; a draw may fall between two rounded probabilities
    torch.testing.assert_close(plain[0].hidden[same], fixed[0].hidden[same], atol=0.05, rtol=0)


@pytest.mark.parametrize("fails_at", [1, 2, 7, 12])
def test_where_a_step_fails_the_plain_ones_go_on_from_it_and_it_is_said_once(embedder, caplog, fails_at):
    calls = []

    def refuse(decoder, args, kwargs):
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            calls.append(len(mask))
            if len(calls) >= fails_at:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")

    embedder.decoder.register_forward_pre_hook(refuse, with_kwargs=True)
    with caplog.at_level(logging.WARNING, graphed.__name__):
        plain, fixed, steps = both_ways(embedder, Sampling(20, 1.0), 3, ENDERS)
        assert_alike(plain, fixed)
        assert steps.are_fixed[: fails_at - 1] == [True] * (fails_at - 1)  # refused before it was noted
        assert not any(steps.are_fixed[fails_at - 1 :])
        assert len({len(ids) for ids in plain[0].token_ids}) > 3  # rows had ended when it failed
        plain, fixed, _ = both_ways(embedder, Sampling(20, 1.0), 3, ENDERS, seed=1)
        assert_alike(plain, fixed)
    assert len(calls) == fails_at  # not tried again
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.endswith("RuntimeError: operation not permitted when stream is capturing")


def test_a_failure_behind_a_copy_of_rows_loses_nothing(embedder):
    sizes = []

    def refuse(decoder, args, kwargs):
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            sizes.append(len(mask))
            if len(mask) < sizes[0]:
                raise RuntimeError("no")

    embedder.decoder.register_forward_pre_hook(refuse, with_kwargs=True)
    plain, fixed, _ = both_ways(embedder, Sampling(60, 1.0), 10, ENDERS)
    assert sizes[-1] < sizes[0]
    assert_alike(plain, fixed)


def test_what_plain_steps_must_take(embedder):
    decoder, ids = embedder.eval().decoder, torch.tensor([[5, 6, 7]])
    cache = DynamicCache()
    with torch.no_grad():
        decoder(input_ids=ids, past_key_values=cache, use_cache=True)
    assert graphed.has_fixed_steps(decoder, cache, 4)
    decoder.train()
    assert not graphed.has_fixed_steps(decoder, cache, 4)  # dropout
    decoder.eval()
    decoder.config.layer_types = ["linear_attention", "full_attention"]
    assert not graphed.has_fixed_steps(decoder, cache, 4)
    decoder.config.layer_types = ["full_attention"] * 2
    assert not graphed.has_fixed_steps(torch.nn.Linear(2, 2), cache, 4)
    cache.layers[1] = DynamicSlidingWindowLayer(64)
    assert not graphed.has_fixed_steps(decoder, cache, 4)


def test_on_a_cpu_steps_are_plain_unless_asked_for():
    embedder = build_embedder()
    with Steps(embedder) as steps:
        embedder.reason(QUERIES, max_new_tokens=12)
    assert steps.seen
    assert not any(steps.are_fixed)
