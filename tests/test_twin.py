"""A strange architecture is refused by name when it is opened; a known one is checked once."""

import json

import pytest
import torch
from architectures import CONFIGS, EAGER_ONLY, build
from conftest import TEXTS, build_embedder
from plain_folders import byte_tokenizer, opened
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    CTRLConfig,
    DeepseekV32Config,
    Gemma4TextConfig,
    GPT2LMHeadModel,
    GPT2Model,
    Lfm2Config,
    LlamaForCausalLM,
    LlamaModel,
    LongcatFlashConfig,
    MambaConfig,
    PhiForCausalLM,
    PhimoeConfig,
)

from search_r3.models import twin
from search_r3.models.folder import ModelFolderError, load_embedder, open_embedder, save_embedder
from search_r3.models.nano import train_tokenizer
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.models.twin import ArchitectureError, check_architecture, fresh_adapter_difference


@pytest.fixture(autouse=True)
def passed(tmp_path, monkeypatch):
    """A folder of the test's own for what has passed."""
    monkeypatch.setattr(twin, "PASSED", tmp_path / "passed")
    monkeypatch.setattr(twin, "_passed", set())
    return tmp_path / "passed"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_listed_architecture_passes_with_lora_and_its_twin_has_two_layers_and_a_window_of_8(name):
    attention = "eager" if name in EAGER_ONLY else "sdpa"
    model = build(name, attention=attention)
    check_architecture(model, LoraTuning(r=4).apply, "lora")
    small = twin.build_twin(model, attention, is_narrow=True)
    assert small.config.num_hidden_layers == 2
    if getattr(model.config, "sliding_window", None):
        assert small.config.sliding_window == 8


def test_what_single_layers_have_of_their_own_is_that_of_the_layer_in_the_twin_too():
    sizes = CONFIGS["gemma4"][1] | {"num_hidden_layers": 3, "num_kv_shared_layers": 0}
    sizes |= {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
    sizes["layer_types"] = ["sliding_attention", "sliding_attention", "full_attention"]
    model = AutoModelForCausalLM.from_config(Gemma4TextConfig(**sizes, vocab_size=96))
    check_architecture(model, LoraTuning(r=4).apply, "lora")
    small = twin.build_twin(model, "sdpa", is_narrow=True).config
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert [each.head_dim for each in small.per_layer_config] == [8, 16]
    assert [each.num_key_value_heads for each in small.per_layer_config] == [2, 1]


def test_a_check_leaves_the_random_numbers_that_a_new_adapter_is_made_of():
    model = build("llama")
    before = torch.get_rng_state()
    check_architecture(model, LoraTuning(r=4).apply, "lora")
    assert torch.equal(torch.get_rng_state(), before)


class SlotGPT2Model(GPT2Model):
    """Its learned positions count slots, whatever it is told: padding moves a text."""

    def forward(self, *args, position_ids=None, **settings):
        return super().forward(*args, **settings)


class SlotGPT2(GPT2LMHeadModel):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = SlotGPT2Model(config)
        self.post_init()


class ForgetfulLlamaModel(LlamaModel):
    """It fills a cache and does not read it."""

    def forward(self, *args, past_key_values=None, attention_mask=None, **settings):
        return super().forward(*args, **settings)


class ForgetfulLlama(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = ForgetfulLlamaModel(config)
        self.post_init()


def test_an_architecture_that_padding_changes_is_refused_by_name():
    model = SlotGPT2(build("gpt2").config)
    with pytest.raises(ArchitectureError, match=r"SlotGPT2 cannot be used here: .*alone"):
        check_architecture(model)


def test_an_architecture_without_a_cache_is_refused_by_name():
    with pytest.raises(ArchitectureError, match="ForgetfulLlama cannot be used here: "):
        check_architecture(ForgetfulLlama(build("llama").config))


SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
RUNNING = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
RECURRENT = {
    "mamba": lambda: MambaConfig(state_size=4, **SMALL),
    "lfm2": lambda: Lfm2Config(layer_types=["conv", "full_attention"], **SMALL, **RUNNING),
    "bamba": lambda: BambaConfig(
        mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, attn_layer_indices=[1], **SMALL, **RUNNING
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_an_architecture_with_a_state_that_runs_along_is_refused_with_the_reason(name):
    model = AutoModelForCausalLM.from_config(RECURRENT[name]())
    with pytest.raises(ArchitectureError, match="cannot be used here: it remembers a text as a state"):
        check_architecture(model)


def test_sparse_attention_with_an_index_of_its_own_is_refused_with_that_reason():
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    heads = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 16, "moe_intermediate_size": 16}
    config = DeepseekV32Config(**experts, **heads, **ranks, **SMALL, **RUNNING)
    with pytest.raises(ArchitectureError) as caught:
        check_architecture(AutoModelForCausalLM.from_config(config))
    says = (
        "DeepseekV32ForCausalLM cannot be used here: its layers are of sparse attention (indexed_attention)"
    )
    assert str(caught.value).startswith(says)
    assert "runs along" not in str(caught.value)


def test_what_has_passed_is_kept_by_the_hash_of_the_configuration_and_what_fails_is_not(passed, monkeypatch):
    model = build("llama")
    check_architecture(model)
    (file,) = passed.iterdir()
    assert json.loads(file.read_text())["architecture"] == "LlamaForCausalLM"
    monkeypatch.setattr(twin, "difference", lambda model: "of a test")
    for known in ({file.stem}, set()):  # by this process, or by one before it
        monkeypatch.setattr(twin, "_passed", known)
        check_architecture(model)
    model.config.rms_norm_eps *= 2  # another configuration is another check
    with pytest.raises(ArchitectureError, match="of a test"):
        check_architecture(model)
    assert list(passed.iterdir()) == [file]


def test_where_nothing_can_be_kept_the_check_is_made_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(twin, "PASSED", tmp_path / "file" / "below")
    check_architecture(build("llama"))
    with pytest.raises(ArchitectureError, match="SlotGPT2"):
        check_architecture(SlotGPT2(build("gpt2").config))


def test_both_ways_to_open_a_folder_refuse_an_architecture_that_is_wrong(tmp_path, monkeypatch):
    folder = save_embedder(build_embedder(), tmp_path / "model", {})
    monkeypatch.setattr(twin, "difference", lambda model: "of a test")
    settings = {"name": None, "create": None, "prompts": None, "lengths": None, "tuning": FullTuning()}
    with pytest.raises(ModelFolderError, match="Qwen3ForCausalLM cannot be used here: of a test"):
        load_embedder(folder)
    with pytest.raises(ModelFolderError, match="Qwen3ForCausalLM cannot be used here: of a test"):
        open_embedder(path=str(folder), **settings)


def test_a_fresh_adapter_on_a_biased_untied_head_changes_no_bit_and_its_row_learns_and_merges():
    model = build("phi")
    assert isinstance(model, PhiForCausalLM)
    assert model.lm_head.bias.abs().max() > 0.1
    ids = torch.tensor([[5, 9, 2, 95]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    tuned = LoraTuning(r=4).apply(model, 95)
    with torch.no_grad():
        assert torch.equal(tuned(input_ids=ids).logits, expected)
    tuned(input_ids=ids).logits[..., 95].sum().backward()
    rows = {name: each for name, each in tuned.named_parameters() if "trainable_tokens" in name}
    assert len(rows) == 2  # the embedding's and the head's
    for parameter in rows.values():
        assert parameter.grad.abs().max() > 0
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.05
        found = tuned(input_ids=ids).logits
        merged = tuned.merge_and_unload()(input_ids=ids).logits
    assert (found - expected).abs().max() > 0.1
    torch.testing.assert_close(merged, found, atol=1e-4, rtol=1e-4)


def test_a_fresh_adapter_that_changes_something_is_told_with_its_size():
    tuned = LoraTuning(r=4).apply(build("llama"), 95)
    assert fresh_adapter_difference(tuned, [3, 1, 4]) == ""
    rows = next(each for name, each in tuned.named_parameters() if "trainable_tokens_delta" in name)
    with torch.no_grad():
        rows += 1.0
    assert "moves its logits by" in fresh_adapter_difference(tuned, [3, 1, 95])
    with torch.no_grad():
        next(each for name, each in tuned.named_parameters() if "lora_B" in name).fill_(0.1)
    assert fresh_adapter_difference(tuned, [3, 1, 95]) == ""  # it has learnt something


SIZES = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 96}
ROUTED = {
    "longcat": (
        lambda: LongcatFlashConfig(
            **SIZES, num_layers=2, num_key_value_heads=4, ffn_hidden_size=64, expert_ffn_hidden_size=32,
            q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
            head_dim=8, moe_topk=2, n_routed_experts=4, zero_expert_num=2,
        ),
        "merged into another model than is trained",
        ("q_b_proj", "o_proj"),
    ),
    "phimoe": (
        lambda: PhimoeConfig(
            **SIZES, num_hidden_layers=2, num_key_value_heads=2, intermediate_size=64, num_local_experts=4
        ),
        "its two-layer twin with a LoRA adapter fails with",
        ("q_proj", "o_proj"),
    ),
    "llama4": (
        lambda: build("llama4").config,
        "its two-layer twin with a LoRA adapter fails with",
        ("q_proj", "o_proj"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTED)
def test_a_router_that_an_adapter_does_not_reach_is_refused_with_the_key_and_other_layers_pass(name):
    """LongCat's reads the weight of a layer that it never calls; the others' give more than a tensor."""
    config, fault, others = ROUTED[name]
    model = AutoModelForCausalLM.from_config(config())
    check_architecture(model)
    with pytest.raises(ArchitectureError, match=rf"{fault}.*model\.tuning\.target_modules"):
        check_architecture(model, LoraTuning(r=4).apply, "all")
    check_architecture(model, LoraTuning(r=4, target_modules=others).apply, "others")


def test_a_model_that_cannot_recompute_activations_is_refused_with_the_key(tmp_path):
    config = CTRLConfig(vocab_size=420, n_positions=128, n_embd=32, dff=64, n_layer=2, n_head=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match=r"model\.gradient_checkpointing=true cannot be had: CTRL"):
        opened(tmp_path, gradient_checkpointing=True)
    opened(tmp_path)


def test_every_trained_weight_of_every_architecture_gets_a_gradient():
    tokenizer = train_tokenizer(TEXTS, 400)
    for name in CONFIGS:
        model = build(name, len(tokenizer), "eager")
        for tuning in (FullTuning(), LoraTuning(r=4)):
            tuned = tuning.apply(model, 95)
            embedder = build_embedder()
            embedder.model = tuned
            states = embedder.hidden_states(torch.tensor([[3, 95, 7]]), torch.ones(1, 3).bool())
            embedder.logits(states[0]).log_softmax(-1)[:, 95].sum().backward()
            missing = [n for n, p in tuned.named_parameters() if p.requires_grad and p.grad is None]
            assert not missing, (name, tuning, missing)
