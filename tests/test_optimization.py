import logging
import math

import pytest
import pytorch_lightning as pl
import torch
from architectures import CONFIGS, build
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader
from transformers import MambaConfig, MambaForCausalLM

from search_r3.stages.optimization import OptimizationSettings, build_optimizer, build_scheduler
from search_r3.stages.step import NonFiniteLossError, optimization_step

PLAIN = OptimizationSettings(
    learning_rate=0.1, weight_decay=0.0, warmup=0, schedule="constant", max_grad_norm=None
)


class Line(pl.LightningModule):
    """Fits `w . x` to 0: the gradient of the loss is the mean of x, whatever w is."""

    def __init__(self, settings=PLAIN, skip_at=(), poison_at=None, poison="loss"):
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.weight.weight)
        self.settings, self.skip_at, self.poison_at, self.poison = settings, skip_at, poison_at, poison
        self.results, self.rates, self.dtypes = [], [], []

    def training_step(self, batch, batch_idx):
        step = self.trainer.global_step
        self.rates.append(self.optimizers().param_groups[0]["lr"])

        def run_backward():
            output = self.weight(batch)
            self.dtypes.append(output.dtype)
            loss = output.float().mean()
            if step == self.poison_at:
                # 0 * inf: a NaN loss; or a finite loss with an infinite gradient, sqrt at 0
                loss = loss * float("nan") if self.poison == "loss" else (self.weight.weight * 0).sqrt().sum()
            self.manual_backward(loss)
            return loss.detach(), {}

        ids = [f"row{batch_idx}a", f"row{batch_idx}b"]
        self.results.append(
            optimization_step(self, run_backward, ids, self.settings.max_grad_norm, step in self.skip_at)
        )

    def configure_optimizers(self):
        optimizer = build_optimizer(self.named_parameters(), self.settings)
        return [optimizer], [build_scheduler(optimizer, self.settings, self.trainer.max_steps)]


def fit(module, n_steps=4, checkpoint=None, **settings):
    data = torch.tensor([[3.0, 4.0, 0.0]]).repeat(1000, 1)
    trainer = pl.Trainer(
        max_steps=n_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader(data, batch_size=2), ckpt_path=checkpoint, weights_only=True)
    return trainer


def groups_by_name(module: nn.Module, settings: OptimizationSettings) -> dict[str, dict]:
    optimizer = build_optimizer(module.named_parameters(), settings)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(parameter)]: group for group in optimizer.param_groups for parameter in group["params"]}


def test_norms_biases_and_embeddings_are_not_decayed(embedder):
    model = nn.ModuleDict({"embedder": embedder, "extra": nn.Linear(2, 2)})
    groups = groups_by_name(model, OptimizationSettings(learning_rate=1e-3, embedding_lr_scale=3.0))
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for name, group in groups.items():
        is_matrix = name.endswith(("proj.weight", "extra.weight"))
        assert group["weight_decay"] == (0.01 if is_matrix else 0.0), name
        assert group["lr"] == pytest.approx(3e-3 if "embed_tokens" in name else 1e-3), name
    unscaled = groups_by_name(model, OptimizationSettings(learning_rate=1e-3))
    assert {group["lr"] for group in unscaled.values()} == {1e-3}


@pytest.mark.parametrize("name", [*CONFIGS, "mamba"])
def test_what_an_architecture_looks_up_is_not_decayed_and_its_products_are(name):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "tie_word_embeddings": False}
    made = (
        MambaForCausalLM(MambaConfig(vocab_size=40, **sizes))
        if name == "mamba"
        else build(name, attention="eager")
    )
    groups = groups_by_name(made, OptimizationSettings(embedding_lr_scale=3.0))
    tied = {id(module.weight) for module in made.modules() if isinstance(module, nn.Embedding)}
    assert tied
    for path, module in made.named_modules():
        if isinstance(module, nn.Embedding | nn.Linear) and f"{path}.weight" in groups:
            looks_up = id(module.weight) in tied
            group = groups[f"{path}.weight"]
            assert (group["weight_decay"] == 0.0, group["lr"] > 2e-4) == (looks_up, looks_up), path


def test_lora_trains_after_logits_were_asked_for_in_a_validation(embedder):
    from search_r3.models.tuning import LoraTuning

    embedder.model = LoraTuning().apply(embedder.model, embedder.embed_token_id)
    states = torch.randn(3, embedder.model.config.hidden_size)
    with torch.inference_mode():  # as Lightning validates
        embedder.logits(states)
    embedder.logits(states).sum().backward()


def test_frozen_parameters_are_left_out_and_lora_rows_are_in(embedder):
    from search_r3.models.tuning import LoraTuning

    tuned = LoraTuning().apply(embedder.model, embedder.embed_token_id)
    groups = groups_by_name(tuned, OptimizationSettings())
    assert {name for name in groups if "lora_A" in name}
    (row,) = {name for name in groups if "trainable_tokens_delta" in name}
    assert groups[row]["weight_decay"] == 0.0
    assert all(dict(tuned.named_parameters())[name].requires_grad for name in groups)
    assert len(groups) < len(list(tuned.parameters()))


def test_a_model_without_trained_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameter is trained"):
        build_optimizer(nn.Linear(1, 1).requires_grad_(False).named_parameters(), PLAIN)


def rates_of(settings):
    """The learning rates of ten steps, by a schedule of as many, and of one behind them."""
    optimizer = build_optimizer(nn.Linear(2, 1, bias=False).named_parameters(), settings)
    scheduler = build_scheduler(optimizer, settings, total_steps=10)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_a_warm_up_longer_than_the_run_is_told(caplog):
    settings = OptimizationSettings(learning_rate=0.1, warmup=40)
    with caplog.at_level("INFO"):
        build_scheduler(build_optimizer([("w", torch.nn.Parameter(torch.ones(1)))], settings), settings, 10)
    assert (
        "the warm-up of 40 steps is longer than the run: the learning rate ends at 0.025 of 0.1"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 2 steps of warm-up to 1, then over 8 steps to 0.2:
        # linear 1 - 0.8 k / 8; cosine 0.2 + 0.4 (1 + cos(pi k / 8))
        ("linear", [0.5, 1.0, *(1 - 0.8 * k / 8 for k in range(9))]),
        ("cosine", [0.5, 1.0, *(0.2 + 0.4 * (1 + math.cos(math.pi * k / 8)) for k in range(9))]),
        ("constant", [0.5, 1.0, *[1.0] * 9]),
    ],
)
@pytest.mark.parametrize("warmup", [2, 0.2])
def test_the_learning_rate_warms_up_and_follows_the_schedule(schedule, expected, warmup):
    settings = OptimizationSettings(
        learning_rate=1.0, warmup=warmup, schedule=schedule, final_lr_share=0.2, weight_decay=0.0
    )
    rates = rates_of(settings)
    assert rates == pytest.approx(expected)


def test_the_final_share_is_where_the_schedule_is_after_the_last_step_and_the_docs_say_so():
    settings = OptimizationSettings(learning_rate=1.0, warmup=0, final_lr_share=0.1)
    *_, last, behind = rates_of(settings)
    assert last == pytest.approx(0.1 + 0.9 / 10)  # 9 of 10 parts of the way from 1 to 0.1
    assert behind == pytest.approx(0.1)
    for text in (OptimizationSettings.__doc__, build_scheduler.__doc__):
        assert "at the last" not in text


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("first", "second"), [(6, 12), (4, 12), (6, 6), (8, 200)])
def test_a_resumed_run_follows_the_schedule_of_its_new_length(tmp_path, caplog, schedule, first, second):
    """What ended at `first` steps and goes on to `second` has the rates of an undisturbed run from there."""
    settings = OptimizationSettings(learning_rate=0.1, warmup=0.25, schedule=schedule)
    stopped, resumed, whole = Line(settings), Line(settings), Line(settings)

    fit(stopped, first).save_checkpoint(tmp_path / "end.ckpt")
    with caplog.at_level(logging.INFO, "search_r3"):
        fit(resumed, second, checkpoint=tmp_path / "end.ckpt")
    fit(whole, second)

    assert stopped.rates[-1] > 0
    assert resumed.rates == pytest.approx(whole.rates[first:], rel=1e-12)
    assert len(resumed.rates) == second - first
    assert all(rate > 0 for rate in resumed.rates)
    said = [record.getMessage() for record in caplog.records if "another length" in record.getMessage()]
    assert len(said) == (second != first)
    if said:
        assert f"step {first} is {whole.rates[first]:.3g}" in said[0]


def test_a_schedule_without_an_end_is_refused():
    with pytest.raises(ValueError, match="max_steps"):
        build_scheduler(build_optimizer(nn.Linear(1, 1).named_parameters(), PLAIN), PLAIN, -1)


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0.0},
        {"warmup": 1.5},
        {"warmup": -1},
        {"schedule": "step"},
        {"max_grad_norm": 0.0},
        {"betas": (0.9,)},
        {"final_lr_share": 2.0},
    ],
)
def test_bad_settings_name_their_key(bad):
    with pytest.raises(ValueError, match=f"optimization.{next(iter(bad))}"):
        OptimizationSettings(**bad)


def test_every_batch_is_one_step_and_the_schedule_follows():
    settings = OptimizationSettings(learning_rate=0.1, warmup=2, schedule="constant")
    module = Line(settings)
    trainer = fit(module)
    assert trainer.global_step == 4
    assert module.rates == pytest.approx([0.05, 0.1, 0.1, 0.1])
    assert (module.weight.weight[0, :2] < 0.8).all()  # Adam moves by the rate: 0.35 in all
    assert module.weight.weight[0, 2] > 0.98  # its gradient is 0


@pytest.mark.filterwarnings("ignore:Detected call of")  # torch counts optimizer steps, none of which happened
def test_skipping_everything_changes_nothing_and_ends():
    module = Line(OptimizationSettings(weight_decay=0.1), skip_at=range(4))
    assert fit(module).global_step == 4
    assert (module.weight.weight == 1.0).all()


BF16 = [pytest.param(name, marks=pytest.mark.bf16) for name in ("bf16-mixed", "bf16-true")]


@pytest.mark.parametrize("precision", ["32-true", *BF16])
def test_the_norm_is_reported_before_clipping(precision):
    module = Line(OptimizationSettings(learning_rate=0.1, max_grad_norm=0.5))
    fit(module, precision=precision)
    assert [result.grad_norm.item() for result in module.results] == pytest.approx([5.0] * 4)  # |(3, 4, 0)|
    assert module.dtypes[0] == (torch.float32 if precision == "32-true" else torch.bfloat16)


def test_gradients_are_clipped_to_the_norm():
    clipped, seen = Line(OptimizationSettings(max_grad_norm=0.5)), []
    clipped.on_before_optimizer_step = lambda optimizer: seen.append(clipped.weight.weight.grad.clone())
    fit(clipped, 1)
    assert torch.allclose(seen[0], torch.tensor([[0.3, 0.4, 0.0]]))  # 0.5 / 5 of (3, 4, 0)


def test_the_fp16_scaler_sees_scaled_gradients_and_the_step_unscaled_ones():
    module = Line(OptimizationSettings(max_grad_norm=0.5))
    seen = []
    module.on_before_optimizer_step = lambda optimizer: seen.append(module.weight.weight.grad.clone())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fit(module, 2, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert module.dtypes[0] == torch.float16
    assert module.results[0].grad_norm.item() == pytest.approx(5.0, rel=1e-3)
    assert torch.allclose(seen[0], torch.tensor([[0.3, 0.4, 0.0]]), atol=1e-3)
    assert scaler.get_scale() == 1024.0


def test_an_overflow_under_the_fp16_scaler_skips_the_update_and_lowers_the_scale():
    module = Line(OptimizationSettings(learning_rate=0.1, weight_decay=0.0, warmup=0))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17)  # 3 * 2^17 is beyond fp16
    trainer = fit(module, 1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert trainer.global_step == 1
    assert scaler.get_scale() == 2.0**16
    assert (module.weight.weight == 1.0).all()


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_before_the_update_and_names_step_and_batch(poison):
    module = Line(poison_at=2, poison=poison)
    with pytest.raises(NonFiniteLossError, match=r"step 2 .*row2a, row2b"):
        fit(module)
    assert torch.isfinite(module.weight.weight).all()
    assert (module.weight.weight[0, :2] < 0.9).all()  # the two steps before count


def test_a_skipped_step_leaves_weights_and_moments_alone_and_still_counts():
    settings = OptimizationSettings(learning_rate=0.1, weight_decay=0.1, warmup=4, schedule="constant")
    module = Line(settings, skip_at=(1, 2))
    trainer = fit(module)
    assert trainer.global_step == 4
    assert [result.is_skipped for result in module.results] == [False, True, True, False]
    assert module.results[1].loss is None
    assert module.rates == pytest.approx([0.025, 0.05, 0.075, 0.1])
    (state,) = trainer.optimizers[0].state.values()
    assert state["step"] == 2
