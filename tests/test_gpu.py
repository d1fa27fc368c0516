"""What a GPU changes: kernels, precision, tensors that must meet on one device. Skipped without one."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from conftest import QUERIES, TEXTS, build_embedder
from test_environment import world
from test_rl import ALIVE, data_of, fit, likely_folder, module_of, opened
from test_sft import module_of as sft_module_of
from test_sft import training_data

from search_r3.index.exact_rank import Positives, Retrieved, Shard, exact_ranking, topk_ranking
from search_r3.index.rules.base import Refresh
from search_r3.index.rules.candidates import Candidates
from search_r3.models.folder import load_embedder, save_embedder
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
