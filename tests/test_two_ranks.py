"""Two real processes over gloo against one. They are started once and do everything; the tests compare."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from conftest import TEXTS, build_embedder
from test_sft import module_of, training_data
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Qwen2Config, Qwen2Model
from two_processes import on_two_ranks

from search_r3.data.types import Benchmark, Corpus
from search_r3.distributed import gather_rows, row_counts, share_of_count
from search_r3.evaluation.query_means import QueryMeans
from search_r3.objectives.losses import hardest_negative_margin, info_nce
from search_r3.objectives.masks import has_negative
from search_r3.stages.checkpoint import TrainableCheckpoint
from search_r3.stages.gradient_cache import ChunkOutput, backward_with_cache
from search_r3.stages.optimization import OptimizationSettings, build_optimizer, build_scheduler
from search_r3.stages.sampler import GroupedBatchSampler
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.settings import SelfWritten
from search_r3.stages.step import NonFiniteLossError, block_sync, optimization_step
from search_r3.stages.validation import validate
from tests.closeness import ULP, assert_close_in_ulps

N_ROWS, WIDTH, N_STEPS = 8, 6, 3
# An eps far above the rounding of a gradient, by whose size Adam would divide: a gradient of rounding errors
# alone would move a weight as far as any other.
SETTINGS = OptimizationSettings(learning_rate=1e-2, warmup=0, max_grad_norm=0.1, eps=1e-3)
SPLITS = {
    "even": [slice(0, 4), slice(4, 8)],
    "ragged": [slice(0, 3), slice(3, 8)],
    "empty": [slice(0, 8), slice(8, 8)],
}


SIZES = [(11, 23), (1, 1), (2, 1)]
"""Queries and documents of a validation; with one of each, the second rank has nothing to do."""


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(2, N_ROWS, WIDTH, generator=generator)
    return queries.requires_grad_(), documents.requires_grad_()


def contrastive_losses(
    queries: torch.Tensor, documents: torch.Tensor, masked_row: int = -1
) -> dict[str, torch.Tensor]:
    """InfoNCE and a margin loss over the documents of all ranks; one row may have nothing to compare."""
    n, rank = len(queries), dist.get_rank() if dist.is_initialized() else 0
    counts = row_counts(n)
    positive_index = torch.arange(n) + sum(counts[:rank])
    gathered = gather_rows(documents, counts)
    mask = (positive_index != masked_row)[:, None].expand(n, len(gathered))
    denominator = share_of_count(int(has_negative(mask, positive_index).sum()))
    arguments = (queries, gathered, positive_index, mask)
    return {
        "info_nce": info_nce(*arguments, temperature=0.2, denominator=denominator),
        "triplet": hardest_negative_margin(*arguments, margin=2.0, denominator=denominator),
    }


def loss_and_gradient(rows: slice) -> dict[str, torch.Tensor]:
    """This rank's losses, and its part of the gradient as DDP would average it."""
    queries, documents = vectors()
    losses = contrastive_losses(queries[rows], documents[rows], masked_row=2)
    torch.stack(list(losses.values())).sum().backward()
    return {
        **{name: loss.detach() for name, loss in losses.items()},
        "queries": queries.grad,
        "documents": documents.grad,
    }


def qwen2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2Model(Qwen2Config(vocab_size=40, num_key_value_heads=1, **sizes))


def token_rows() -> torch.Tensor:
    return torch.randint(40, (N_ROWS, 5), generator=torch.Generator().manual_seed(1))


def embedding_loss(embeddings: list[torch.Tensor]) -> tuple[torch.Tensor, dict]:
    """Queries and documents alternate; the loss is over both ranks' rows."""
    both = torch.cat(embeddings)
    return torch.stack(list(contrastive_losses(both[0::2], both[1::2]).values())).sum(), {}


def both_sides(rows: torch.Tensor) -> torch.Tensor:
    return torch.stack([rows, rows.roll(1, dims=1)], dim=1).flatten(0, 1)  # [2 n, L]


def ddp_gradients(rows: torch.Tensor, chunk_size: int) -> dict[str, torch.Tensor]:
    """Gradients of a real model after gradient caching under torch's own DDP."""
    model = qwen2()
    runner = DistributedDataParallel(model) if dist.is_initialized() else model

    def forward(part: torch.Tensor) -> ChunkOutput:
        return ChunkOutput(normalize(runner(part).last_hidden_state[:, -1], dim=-1))

    backward_with_cache(
        both_sides(rows).split(chunk_size),
        forward,
        embedding_loss,
        torch.Tensor.backward,
        getattr(runner, "no_sync", nullcontext),
    )
    return {name: parameter.grad for name, parameter in model.named_parameters()}


class Pairs(pl.LightningModule):
    """The same losses trained by Lightning, two chunks a step."""

    def __init__(self, poison_rank=None, skip_ranks=()):
        super().__init__()
        self.automatic_optimization = False
        self.model = qwen2()
        self.poison_rank, self.skip_ranks, self.results = poison_rank, skip_ranks, []

    def training_step(self, batch, batch_idx):
        chunks = both_sides(batch).split(len(batch))

        def forward(part):
            return ChunkOutput(normalize(self.model(part).last_hidden_state[:, -1], dim=-1))

        def run_backward():
            loss, told = backward_with_cache(
                chunks, forward, embedding_loss, self.manual_backward, block_sync(self)
            )
            return loss * float("nan") if self.global_rank == self.poison_rank else loss, told

        ids = [f"r{self.global_rank}"]
        skip = self.global_rank in self.skip_ranks
        self.results.append(optimization_step(self, run_backward, ids, SETTINGS.max_grad_norm, skip))

    def configure_optimizers(self):
        optimizer = build_optimizer(self.named_parameters(), SETTINGS)
        return [optimizer], [build_scheduler(optimizer, SETTINGS, N_STEPS)]


def fit(module: Pairs, folder: Path, **settings) -> dict:
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sampler = GroupedBatchSampler(N_ROWS, batch_size=N_ROWS, rank=rank, world_size=world_size)
    trainer = pl.Trainer(
        max_steps=N_STEPS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[TrainableCheckpoint(folder)],
        **settings,
    )
    trainer.fit(module, DataLoader(token_rows(), batch_sampler=sampler))
    return {
        "weights": {name: value.detach().clone() for name, value in module.state_dict().items()},
        "norms": [result.grad_norm for result in module.results],
        "losses": [result.loss for result in module.results],
        "skipped": [result.is_skipped for result in module.results],
        "global_step": trainer.global_step,
    }


def collection(n_queries: int, n_documents: int) -> Benchmark:
    """Texts of many lengths, all different; some queries have several relevant documents."""
    words = " ".join(TEXTS).split()
    documents = [" ".join(words[row : row + 3 + row % 19]) for row in range(n_documents)]
    queries = {f"q{row}": " ".join(words[row : row + 1 + row % 7]) for row in range(n_queries)}
    qrels = {
        f"q{row}": {f"d{(3 * row + i) % n_documents}": 1 for i in range(1 + row % 3)}
        for row in range(n_queries)
    }
    return Benchmark("v", Corpus([f"d{row}" for row in range(n_documents)], documents), queries, qrels)


def validated(n_queries: int, n_documents: int) -> dict:
    """What validation gives, and what it took from this rank."""
    embedder = build_embedder()
    embedder.token_budget = 60  # many batches, of which the ranks have different numbers
    forwards, rows = [], []

    def count(module, arguments, keywords):
        forwards.append(1)
        if not keywords["use_cache"] and keywords["input_ids"].shape[1] > 1:
            rows.append(len(keywords["input_ids"]))  # documents and direct queries

    embedder.decoder.register_forward_pre_hook(count, with_kwargs=True)
    values = validate(embedder, collection(n_queries, n_documents))
    return {"values": values, "forwards": len(forwards), "rows": sum(rows)}


def validated_in_training(**settings) -> dict[str, float]:
    """What Lightning logs for the SFT stage."""
    module = module_of(build_embedder())
    datamodule = SFTDataModule(training_data(), module.embedder, 5, 0, 0.0, 0, 5, 5)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )
    trainer.validate(module, datamodule, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def self_written(n_rows: int, **settings) -> dict:
    """Reasonings that a training step samples for so many rows, and the forwards that it took."""
    embedder = build_embedder()
    embedder.token_budget = 60  # a batch for each row or two
    module = module_of(embedder, written=SelfWritten(1, 1.0, 1.0))
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **settings)
    forwards = []
    embedder.decoder.register_forward_pre_hook(lambda *_: forwards.append(1))
    written = module._write(training_data().examples[:n_rows])
    return {"written": written, "forwards": len(forwards)}


def doubly_seen(rank: int) -> float:
    """The mean where a sampler has padded the second rank's share with a query of the first."""
    means = QueryMeans(["q0", "q1", "q2"], ["ndcg@10"])
    seen = [{"q0": 0.0, "q1": 1.0}, {"q1": 0.0, "q2": 1.0}][rank]
    means.update({query: {"ndcg@10": value} for query, value in seen.items()})
    return float(means.compute()["ndcg@10"])


def error_of(run) -> str:
    try:
        run()
    except NonFiniteLossError as error:
        return str(error)
    return "nothing was raised"


def work(rank: int, folder: Path) -> dict:
    """Everything that one of the two processes does."""
    ddp = {"strategy": "ddp", "devices": 2}
    results = {name: loss_and_gradient(split[rank]) for name, split in SPLITS.items()}
    results["ids"] = gather_rows(torch.arange(rank + 1) + 10 * rank)
    results["ddp"] = ddp_gradients(token_rows()[rank * 4 : rank * 4 + 4], chunk_size=3)
    results["fit"] = fit(Pairs(), folder / "two", **ddp)
    results["one skips"] = fit(Pairs(skip_ranks=[0]), folder / "one_skips", **ddp)["skipped"]
    results["both skip"] = fit(Pairs(skip_ranks=[0, 1]), folder / "both_skip", **ddp)
    results["doubly seen"] = doubly_seen(rank)
    results["validated"] = {size: validated(*size) for size in SIZES}
    results["validated in training"] = validated_in_training(**ddp)
    results["self-written"] = {n: self_written(n if rank == 0 else 0, **ddp) for n in (0, 3)}
    results["error"] = error_of(lambda: fit(Pairs(poison_rank=1), folder / "poison", **ddp))
    return results


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict]:
    return on_two_ranks(work, tmp_path_factory.mktemp("two_ranks"))


@pytest.mark.parametrize("split", SPLITS)
def test_the_mean_over_ranks_is_the_loss_of_one_rank(two_ranks, split):
    whole = loss_and_gradient(slice(0, N_ROWS))
    for name in ("info_nce", "triplet"):
        values = [rank[split][name].item() for rank in two_ranks]
        assert whole[name] > 0.1
        assert sum(values) / 2 == pytest.approx(whole[name].item(), rel=16 * ULP)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["queries", "documents"])
def test_the_mean_over_ranks_is_the_gradient_of_one_rank(two_ranks, split, name):
    whole = loss_and_gradient(slice(0, N_ROWS))[name]
    assert whole.abs().max() > 1e-2
    mean = (two_ranks[0][split][name] + two_ranks[1][split][name]) / 2
    assert_close_in_ulps(mean, whole, 64)  # a temperature of 0.2 multiplies by 5


def test_a_rank_alone_has_another_gradient(two_ranks):
    whole = loss_and_gradient(slice(0, N_ROWS))["documents"]
    assert not torch.allclose(two_ranks[0]["even"]["documents"][:4], whole[:4], atol=1e-3)


def test_rows_without_gradient_are_gathered_in_the_order_of_ranks(two_ranks):
    for rank in two_ranks:
        assert rank["ids"].tolist() == [0, 10, 11]


def test_gradient_caching_under_ddp_gives_the_plain_gradient_of_one_rank(two_ranks):
    plain = ddp_gradients(token_rows(), chunk_size=2 * N_ROWS)
    for name, gradient in plain.items():
        assert gradient.abs().max() > 1e-4, name
        for rank in two_ranks:
            assert_close_in_ulps(rank["ddp"][name], gradient, 1024, name)


def test_training_on_two_ranks_gives_the_weights_of_one(two_ranks, tmp_path):
    one = fit(Pairs(), tmp_path)
    for rank in two_ranks:
        assert rank["fit"]["global_step"] == N_STEPS
        for norm, expected in zip(rank["fit"]["norms"], one["norms"], strict=True):
            assert norm.item() == pytest.approx(expected.item(), rel=1e-3)
        for name, weight in rank["fit"]["weights"].items():
            assert_close_in_ulps(weight, one["weights"][name], 256, name)
    mean = sum(rank["fit"]["losses"][-1] for rank in two_ranks) / 2
    assert mean.item() == pytest.approx(one["losses"][-1].item(), rel=1e-3)
    assert one["losses"][-1] < one["losses"][0]


def test_a_step_is_skipped_only_if_no_rank_has_something_to_learn(two_ranks):
    for rank in two_ranks:
        assert rank["one skips"] == [False] * N_STEPS
        assert rank["both skip"]["skipped"] == [True] * N_STEPS
        assert rank["both skip"]["global_step"] == N_STEPS
        for name, weight in qwen2().state_dict().items():
            assert torch.equal(rank["both skip"]["weights"][f"model.{name}"], weight), name


def test_a_bad_loss_on_one_rank_stops_both_and_names_its_batch(two_ranks):
    for rank in two_ranks:
        assert "step 0 stopped" in rank["error"]
        assert "rank 1: loss nan" in rank["error"]
        assert "batch r1" in rank["error"]


def test_pitfall_7_a_query_seen_by_two_ranks_counts_once(two_ranks):
    # The first report of q1 is taken: (0 + 1 + 1) / 3. Sums over what each rank saw would give 2 / 4.
    for rank in two_ranks:
        assert rank["doubly seen"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("size", SIZES)
def test_validation_on_two_ranks_is_that_of_one(two_ranks, size):
    whole = validated(*size)
    assert whole["values"].keys() >= {"direct/ndcg@10", "reasoning/map@100", "has_embed_token"}
    for rank in two_ranks:
        assert rank["validated"][size]["values"] == pytest.approx(whole["values"], abs=1e-6)
    if size == SIZES[0]:
        assert 0 < whole["values"]["direct/ndcg@10"] < 1
        assert 0 < whole["values"]["reasoning/ndcg@10"] < 1


@pytest.mark.parametrize("size", SIZES)
def test_in_validation_the_ranks_run_equally_many_forwards_on_shares_of_the_work(two_ranks, size):
    n_queries, n_documents = size
    first, second = (rank["validated"][size] for rank in two_ranks)
    assert first["forwards"] == second["forwards"] > 0
    assert first["rows"] == (n_queries + 1) // 2 + (n_documents + 1) // 2
    assert second["rows"] == n_queries // 2 + n_documents // 2


def test_a_rank_without_rows_to_reason_about_runs_the_forwards_of_the_other(two_ranks):
    first, second = (rank["self-written"] for rank in two_ranks)
    alone = self_written(3, devices=1)
    assert first[3] == alone
    assert sorted(alone["written"]) == [0, 1, 2]
    assert second[3] == {"written": {}, "forwards": alone["forwards"]}
    assert alone["forwards"] > 2
    assert first[0] == second[0] == {"written": {}, "forwards": 0}


def test_the_sft_stage_logs_the_validation_of_all_ranks(two_ranks):
    one = validated_in_training()
    assert 0 < one["val/direct/ndcg@10"] < 1
    for rank in two_ranks:
        assert rank["validated in training"] == pytest.approx(one, abs=1e-6)
