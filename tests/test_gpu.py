"""What a GPU changes: kernels, precision, tensors that must meet on one device. Skipped without one."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from conftest import QUERIES, TEXTS, build_embedder
from rl_runs import ALIVE, data_of, fit, likely_folder, module_of, opened
from test_environment import world
from test_sft import module_of as sft_module_of
from test_sft import training_data

from search_r3.index.exact_rank import Positives, Retrieved, Shard, exact_ranking, topk_ranking
from search_r3.index.rules.base import Refresh
from search_r3.index.rules.candidates import Candidates
from search_r3.models import graphed
from search_r3.models.folder import load_embedder, save_embedder
from search_r3.models.generation import Sampling, SpecialIds, decode, row_uniforms
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.pretrain.data import PretrainDataModule
from search_r3.stages.pretrain.module import PretrainModule
from search_r3.stages.rl.settings import PolicySettings
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.settings import SelfWritten
from tests.command import run

pytestmark = pytest.mark.gpu

DEVICE, ACCELERATOR = "cuda", "gpu"
PRECISIONS = ["32-true", "bf16-mixed"]
NEAR = {"float32": 1e-4, "bfloat16": 3e-2}
"""How far the vectors of two devices may lie apart, each number of a unit vector of 32; bf16 keeps 8 bits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that writes the embed token now and then; read only."""
    return likely_folder(tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="module")
def on_cpu(folder):
    """Read only."""
    return load_embedder(folder)


@pytest.fixture(scope="module", params=NEAR)
def on_gpu(folder, request):
    """Read only."""
    return load_embedder(folder, DEVICE, request.param)


# Inference


def test_vectors_of_the_gpu_are_those_of_the_cpu(on_cpu, on_gpu):
    assert on_gpu.device.type == DEVICE
    for ours, theirs in (
        (on_gpu.embed_documents(TEXTS), on_cpu.embed_documents(TEXTS)),
        (on_gpu.embed_queries(QUERIES), on_cpu.embed_queries(QUERIES)),
        (on_gpu.embed_reasoned(QUERIES, TEXTS[:5]), on_cpu.embed_reasoned(QUERIES, TEXTS[:5])),
    ):
        assert ours.device.type == "cpu"
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=NEAR[on_gpu.dtype_name], rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_with_a_cache_on_the_gpu_embeds_what_a_full_forward_there_embeds(on_gpu, temperature):
    reasoned = on_gpu.reason(QUERIES * 3, seed=3, temperature=temperature)
    whole = on_gpu.embed_ids(on_gpu.reasoned_ids(QUERIES * 3, reasoned.token_ids))
    torch.testing.assert_close(reasoned.embeddings, whole, atol=NEAR[on_gpu.dtype_name], rtol=0)
    assert sum(reasoned.n_tokens) > 0


def test_what_is_sampled_on_the_gpu_is_nearly_always_what_the_cpu_samples(folder, on_cpu):
    # the draws are the same numbers; a token differs only where one falls between two rounded probabilities
    on_gpu = load_embedder(folder, DEVICE)
    ours, theirs = (each.reason(QUERIES * 8, seed=5, temperature=1.0).token_ids for each in (on_gpu, on_cpu))
    assert sum(one == other for one, other in zip(ours, theirs, strict=True)) >= 38  # of 40


GRAPHED = {
    "fp32": (None, torch.float32, False),
    "bf16": (None, torch.bfloat16, False),
    "full, autocast": (FullTuning(), torch.float32, True),
    "LoRA": (LoraTuning(r=4, alpha=8), torch.float32, False),
    "LoRA, autocast": (LoraTuning(r=4, alpha=8), torch.bfloat16, True),
}


def decoded(embedder, graphs, limit=90, temperature=1.0):
    """50 rows that end one by one, and for how many steps Python ran the model."""
    prompts, calls = embedder.encoder.reasoning_prompts(QUERIES), []
    own = embedder.special_ids
    special = SpecialIds(own.embed, frozenset(range(300, 330)), own.banned, own.pad)
    hook = embedder.decoder.register_forward_pre_hook(
        lambda decoder, args, kwargs: calls.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    draws = row_uniforms(0, range(50), limit) if temperature else None
    sampling = Sampling(limit, temperature)
    found = decode(embedder.decoder, embedder.logits, prompts, special, sampling, draws, 10, graphs=graphs)
    hook.remove()
    return found, sum(length == 1 for _, length in calls)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", GRAPHED)
def test_replayed_steps_write_what_launched_ones_write(monkeypatch, kind, temperature):
    monkeypatch.setattr(graphed, "_warned", [])
    monkeypatch.setattr(graphed, "SLOTS", 24)
    tuning, dtype, is_cast = GRAPHED[kind]
    embedder = build_embedder()
    if tuning is not None:
        embedder.model = tuning.apply(embedder.model, embedder.embed_token_id)
    for name, value in embedder.model.named_parameters():
        value.data = value.data if "lora_" in name else value.data.to(dtype)
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    embedder.to(DEVICE).eval()
    draws = torch.cuda.get_rng_state()
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=is_cast):
        (plain, n_launched), (fixed, n_run) = (
            decoded(embedder, each, 90, temperature) for each in (False, True)
        )

    assert graphed._warned == []  # nothing fell back
    assert 0 < n_run < n_launched / 2  # twice for every capture
    same = [one == other for one, other in zip(plain.token_ids, fixed.token_ids, strict=True)]
    is_exact = dtype == torch.float32 and not is_cast
    # rounding decides between two tokens now and then, without a draw for all rollouts of a query at once
    assert sum(same) >= (40 if is_exact else 25 if temperature else 10)
    near = {"atol": 1e-4 if is_exact else 0.1, "rtol": 0.0}
    torch.testing.assert_close(plain.hidden[same], fixed.hidden[same], **near)
    for row in [row for row, alike in enumerate(same) if alike]:
        ours, theirs = (torch.tensor(each.log_probs[row]) for each in (plain, fixed))
        torch.testing.assert_close(ours, theirs, **near)
    assert torch.equal(torch.cuda.get_rng_state(), draws)


@pytest.mark.parametrize("spoils", ["a value is read", "the device is waited for"])
def test_a_step_that_cannot_be_captured_is_launched_and_leaves_the_gpu_as_it_was(monkeypatch, spoils):
    monkeypatch.setattr(graphed, "_warned", [])
    embedder, other = build_embedder().to(DEVICE).eval(), build_embedder().to(DEVICE).eval()
    expected, _ = decoded(other, False)
    n_calls = []

    def wait(decoder, args, kwargs):
        if "position_ids" not in kwargs or kwargs["attention_mask"].ndim != 4:
            return
        n_calls.append(1)
        if spoils == "a value is read":  # refused before any capture
            kwargs["input_ids"].sum().item()
        elif len(n_calls) == 2:  # within the capture, which this spoils
            torch.cuda.synchronize()

    embedder.decoder.register_forward_pre_hook(wait, with_kwargs=True)
    found, n_launched = decoded(embedder, True)
    assert len(n_calls) == (1 if spoils == "a value is read" else 2)
    assert len(graphed._warned) == 1
    same = [one == two for one, two in zip(found.token_ids, expected.token_ids, strict=True)]
    assert sum(same) >= 48  # rounding decides between two tokens now and then
    torch.testing.assert_close(found.hidden[same], expected.hidden[same], atol=1e-4, rtol=0)

    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(100, device=DEVICE).std() > 0
    again, n_run = decoded(other, True)
    assert len(graphed._warned) == 1  # another model's steps are still captured
    assert n_run < n_launched / 2
    assert sum(one == two for one, two in zip(again.token_ids, expected.token_ids, strict=True)) >= 48


def test_as_many_rollouts_are_decoded_at_once_as_the_memory_holds(folder):
    embedder = load_embedder(folder, DEVICE)
    free = torch.cuda.mem_get_info()[0]
    assert 0.2 * free < embedder.decoding_budget * embedder.bytes_per_token < 0.5 * free


def test_gradients_are_finite_at_every_length(folder):
    # cuDNN's backward is NaN at lengths of 64 modulo 128 where a row has a mask
    embedder = opened(folder).to(DEVICE)
    for width in (63, 64, 65, 192):
        mask = torch.arange(width, device=DEVICE) >= torch.tensor([[0], [width - 5]], device=DEVICE)
        ids = torch.full(mask.shape, 10, device=DEVICE)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            embedder.hidden_states(ids, mask)[:, -1].float().pow(2).sum().backward()
        for name, value in embedder.named_parameters():
            assert value.grad is None or torch.isfinite(value.grad).all(), (width, name)
        embedder.zero_grad()


# Exact ranks


def to_gpu(positives):
    return Positives(positives.rows.to(DEVICE), positives.grades.to(DEVICE))


@pytest.mark.parametrize("kind", ["array", "tensor", "tensor on the gpu"])
def test_the_exact_rank_on_the_gpu_is_that_of_the_cpu(kind):
    rows, queries, positives = world()
    given = {"array": rows.numpy(), "tensor": rows, "tensor on the gpu": rows.to(DEVICE)}[kind]
    expected = exact_ranking(queries, positives, Shard(rows))
    ranking = exact_ranking(queries.to(DEVICE), to_gpu(positives), Shard(given))
    assert ranking.rank.device.type == DEVICE
    assert torch.equal(ranking.has_positive.cpu(), expected.has_positive)
    assert torch.equal(ranking.rank.cpu()[expected.has_positive], expected.rank[expected.has_positive])
    torch.testing.assert_close(ranking.best_wrong.cpu(), expected.best_wrong, atol=1e-6, rtol=0)
    assert torch.equal(ranking.last_rank.cpu(), expected.last_rank)


def test_ranks_do_not_depend_on_tf32_or_on_autocast():
    rows, queries, positives = world()
    expected = exact_ranking(queries, positives, Shard(rows))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            ranking = exact_ranking(queries.to(DEVICE), to_gpu(positives), Shard(rows.numpy()))
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(ranking.rank.cpu()[expected.has_positive], expected.rank[expected.has_positive])


def test_the_rank_among_retrieved_documents_on_the_gpu_is_that_of_the_cpu():
    rows, queries, positives = world()
    found = Retrieved(*(queries @ rows.T).topk(30))
    expected = topk_ranking(queries, positives, found, Shard(rows))
    moved = Retrieved(found.scores.to(DEVICE), found.rows.to(DEVICE))
    ranking = topk_ranking(queries.to(DEVICE), to_gpu(positives), moved, Shard(rows.numpy()))
    assert torch.equal(ranking.rank.cpu()[expected.has_positive], expected.rank[expected.has_positive])


# One step of each stage


def trainer_of(max_steps, precision, accelerator=None):
    return pl.Trainer(
        max_steps=max_steps, accelerator=accelerator or ACCELERATOR, devices=1, precision=precision,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, check_val_every_n_epoch=None, limit_val_batches=0,
    )  # fmt: skip


def weights_of(module):
    return {name: value.detach().cpu().clone() for name, value in module.named_parameters()}


def assert_moved(module, before):
    after = weights_of(module)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def sft_run(folder, tuning, precision, accelerator=None):
    """A trained module and the loss of its last step."""
    torch.manual_seed(0)  # of an adapter's first weights
    module = sft_module_of(opened(folder, tuning), chunk_rows=2, written=SelfWritten(1, 0.5, 1.0))
    before = weights_of(module)
    trainer = trainer_of(2, precision, accelerator)
    trainer.fit(module, SFTDataModule(training_data(), module.embedder, 5, 0, 0.0, 0, 5, 5))
    assert_moved(module, before)
    return module, float(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(r=4, alpha=8)], ids=["full", "LoRA"])
def test_sft_takes_the_steps_of_the_cpu(folder, tuning, precision):
    _, loss = sft_run(folder, tuning, precision)
    _, expected = sft_run(folder, tuning, "32-true", "cpu")
    assert loss == pytest.approx(expected, rel=1e-2 if precision == "32-true" else 0.1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pretraining_takes_the_steps_of_the_cpu(precision):
    losses = []
    for accelerator, kind in ((ACCELERATOR, precision), ("cpu", "32-true")):
        embedder = build_embedder()
        settings = OptimizationSettings(5e-3, warmup=0, schedule="constant")
        module = PretrainModule(embedder, settings, micro_batch=2)
        before, trainer = weights_of(module), trainer_of(3, kind, accelerator)
        trainer.fit(module, datamodule=PretrainDataModule(training_data(), embedder, 4, 32, None, 0))
        assert_moved(module, before)
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if precision == "32-true" else 0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(r=4, alpha=8)], ids=["full", "LoRA"])
def test_rl_takes_steps_with_all_that_it_can_do_at_once(folder, tmp_path, tuning, precision):
    """KL, the contrastive term, both ranks, audits, the table, two updates: all that could lie on the CPU."""
    embedder = opened(folder, tuning)
    policy = PolicySettings(kl_weight=0.05, contrastive_weight=0.5, n_updates=2)
    module = module_of(embedder, tmp_path, policy, limits=ALIVE, rank_agreement_every_n_steps=1)
    refresh = Refresh(Candidates(k=3), budget=4, background=0.1, audit_every_n_steps=1, seed=1)
    data = data_of(embedder, tmp_path / "run", refresh, updates_per_batch=2)
    before = weights_of(module)
    _, log = fit(module, data, 4, accelerator=ACCELERATOR, precision=precision)
    assert_moved(module, before)
    assert len(log.steps) == 2
    assert all(math.isfinite(value) for step in log.steps for value in step.values())
    # under bf16 training multiplies in another precision than sampling does
    assert log.of("log_prob_gap")[0] < (1e-3 if precision == "32-true" else 0.5)
    assert (tmp_path / "completions.jsonl").stat().st_size > 0


def test_validation_in_training_reads_the_model_on_the_gpu(folder):
    embedder = opened(folder)
    module = sft_module_of(embedder)
    trainer = trainer_of(2, "32-true")
    trainer.limit_val_batches = 1
    trainer.validate(module, SFTDataModule(training_data(), embedder, 5, 0, 0.0, 0, 5, 5), verbose=False)
    assert 0 <= float(trainer.callback_metrics["val/direct/ndcg@10"]) <= 1


def test_a_model_trained_on_the_gpu_is_saved_and_embeds_the_same_on_the_cpu(folder, tmp_path):
    module, _ = sft_run(folder, LoraTuning(r=4, alpha=8), "32-true")
    ours = module.embedder.to(DEVICE).embed_documents(TEXTS)
    saved = save_embedder(module.embedder, tmp_path / "model", {}, is_trained=True)
    torch.testing.assert_close(load_embedder(saved).embed_documents(TEXTS), ours, atol=1e-4, rtol=0)


# What a user types


@pytest.fixture(scope="module")
def data_arguments(tmp_path_factory):
    rows = []
    for number in range(20):
        query, code = TEXTS[number % 5].split("\n", 1)
        rows.append({"query": f"{query} {number}", "positive": f"{code} # {number}"})
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "data.columns.hard_negatives=null"
    return ["data=triples", f'data.files=["{file}"]', columns, "data.validation_share=0.2"]


COMMON = ["stage.trainer.max_steps=2", "stage.trainer.log_every_n_steps=1", "stage.datamodule.batch_size=4"]
STAGES = {
    "sft": ["stage.trainer.val_check_interval=2"],
    "pretrain": ["stage.datamodule.sequence_length=32"],
    "rl": ["stage.trainer.val_check_interval=2", "stage.module.rollouts.group_size=3"],
}


STRATEGIES = {
    "gpu": [],
    "fsdp": [],
    "fsdp, LoRA, recomputed": [
        "model.tuning._target_=search_r3.models.tuning.LoraTuning",
        "model.gradient_checkpointing=true",
    ],
}
"""With `fsdp` one GPU holds all shares; what it runs is what each of several does."""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_on_one_gpu_and_leaves_a_model_that_opens(
    folder, data_arguments, tmp_path, stage, strategy
):
    cache = [f"stage.datamodule.cache_dir={tmp_path / 'cache'}"] if stage == "rl" else []
    done = run(
        "train", f"stage={stage}", f"strategy={strategy.partition(',')[0]}", "strategy.devices=1",
        *STRATEGIES[strategy], *data_arguments, *COMMON, *STAGES[stage], *cache, f"model.path={folder}",
        f"output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    trained, before = (
        load_embedder(each).embed_documents(TEXTS) for each in (tmp_path / "run/model", folder)
    )
    assert torch.isfinite(trained).all()
    assert not torch.equal(trained, before)


def test_a_saved_model_is_evaluated_on_the_gpu(folder, tmp_path):
    from test_benchmark import write_collection

    write_collection(tmp_path / "beir" / "tiny")
    rows = []
    for device in (DEVICE, "cpu"):
        done = run(
            "evaluate", f"model.path={folder}", f"model.device={device}", "benchmarks=[tiny]",
            f"beir_dir={tmp_path / 'beir'}", f"output_dir={tmp_path / device}",
            f"cache_dir={tmp_path / 'cache' / device}", "modes=[direct]",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        rows.append(json.loads((tmp_path / device / "metrics.json").read_text())["rows"][0])
    assert rows[0]["metrics"] == pytest.approx(
        rows[1]["metrics"], abs=0.2
    )  # two near vectors may change places
    assert rows[0]["weights_sha256"] == rows[1]["weights_sha256"]
