"""When what texts begin with is run once. The vectors are compared in test_architectures."""

import pytest
import torch
from conftest import LENGTHS, TEXTS, build_embedder
from transformers import Lfm2Config, Lfm2ForCausalLM, MambaConfig, MambaForCausalLM

from search_r3.models.embedder import SAVED_FROM, SHARED_FROM, ReasoningEmbedder
from search_r3.models.prompts import Prompts
from search_r3.shipped import ROOT

WORDS = "Represent the lines of this text so that a search for what they do will find them."
LONG = Prompts(f"{WORDS} query", f"{WORDS} reason", f"{WORDS} document", lead_in="", closing="")


def long_embedder():
    embedder = build_embedder()
    return ReasoningEmbedder(embedder.model, embedder.tokenizer, LONG, LENGTHS, is_trained=False)


MANY = 20  # texts whose prompt is worth sharing


def widths(embedder, sequences):
    """`[rows, columns]` of each forward that embeds the sequences."""
    seen = []
    hook = embedder.decoder.register_forward_pre_hook(
        lambda decoder, args, kwargs: seen.append(list(kwargs["input_ids"].shape)), with_kwargs=True
    )
    embedder.embed_ids(sequences)
    hook.remove()
    return seen


def test_what_is_too_short_or_saves_too_little_is_run_with_every_text():
    embedder = long_embedder()
    n_prompt = len(embedder.encoder.document.prefix)
    n_paying = -(-SAVED_FROM // n_prompt) + 1  # the first text runs it, each other one saves it
    sequences = embedder.encoder.documents([f"{number}" for number in range(n_paying)])
    assert n_prompt >= SHARED_FROM
    assert n_paying > 2
    assert widths(embedder, sequences)[0] == [1, n_prompt]
    assert widths(embedder, sequences[1:]) == [[n_paying - 1, max(map(len, sequences[1:]))]]
    assert widths(embedder, []) == []
    embedder.shared_from = n_prompt + 1
    assert widths(embedder, sequences) == [[n_paying, max(map(len, sequences))]]


def test_the_shipped_base_has_a_prompt_too_short_to_share():
    import json

    rendered = json.loads((ROOT / "experiments/nano_base/model/search_r3.json").read_text())["rendered"]
    assert {len(prompt["prefix_ids"]) for prompt in rendered.values()} == {3}
    assert SHARED_FROM > 3  # so that `make train` keeps its numbers to the last bit


def test_what_texts_have_in_common_behind_their_prompt_is_not_shared():
    embedder = long_embedder()
    sequences = embedder.encoder.documents([TEXTS[0], TEXTS[0] + " again"] * MANY)
    n_prompt = len(embedder.encoder.document.prefix)
    assert widths(embedder, sequences)[0] == [1, n_prompt]
    mixed = [*sequences, *embedder.encoder.queries(TEXTS[:2])]  # `WORDS` begins them all
    n_common = next(n for n, ids in enumerate(zip(*mixed, strict=False)) if len(set(ids)) > 1)
    assert SHARED_FROM <= n_common < n_prompt
    assert widths(embedder, mixed)[0] == [1, n_common]


SMALL = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}


@pytest.mark.parametrize(
    "made",
    [
        lambda: MambaForCausalLM(MambaConfig(**SMALL, state_size=4)),
        lambda: Lfm2ForCausalLM(
            Lfm2Config(
                **SMALL,
                intermediate_size=48,
                num_attention_heads=4,
                num_key_value_heads=2,
                layer_types=["conv", "full_attention"],
            )
        ),
    ],
    ids=["mamba", "convolutions"],
)
def test_a_model_that_remembers_more_than_keys_and_values_runs_every_text_whole(made):
    tokenizer = build_embedder().tokenizer
    model = made().eval()
    model.resize_token_embeddings(len(tokenizer))
    embedder = ReasoningEmbedder(model, tokenizer, LONG, LENGTHS, is_trained=False)
    n_rows = []
    embedder.decoder.register_forward_pre_hook(
        lambda decoder, args, kwargs: n_rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    sequence = embedder.encoder.documents(TEXTS[:1])[0]
    prefix = embedder.prefix_of([sequence] * MANY)
    assert (prefix.n_ids, n_rows) == (0, [])
    assert long_embedder().prefix_of([sequence] * MANY).n_ids == len(embedder.encoder.document.prefix)


def test_recomputed_activations_leave_nothing_to_share():
    embedder = long_embedder()
    embedder.model.gradient_checkpointing_enable({"use_reentrant": False})
    sequences = embedder.encoder.documents(TEXTS[:2] * MANY)
    embedder.model.train()
    assert embedder.prefix_of(sequences).n_ids == 0
    embedder.model.eval()  # nothing is recomputed without a gradient
    assert embedder.prefix_of(sequences).n_ids > 0
    assert torch.isfinite(embedder.embed_ids(sequences)).all()
