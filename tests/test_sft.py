"""The SFT stage: its losses reach the weights, gradient caching and LoRA change nothing they should not."""

from dataclasses import replace
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from conftest import PROMPTS, TEXTS, build_embedder
from torch.nn import functional as F
from torch.utils.data import DataLoader

from search_r3.data.queries import one_row_per_query
from search_r3.data.types import Benchmark, Corpus, Example, TrainingData
from search_r3.models.folder import open_embedder, save_embedder
from search_r3.models.tuning import FullTuning, LoraTuning
from search_r3.objectives.losses import hardest_negative_margin, info_nce
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.pretrain.data import PretrainDataModule
from search_r3.stages.pretrain.module import PretrainModule
from search_r3.stages.sft.collate import collate_sft
from search_r3.stages.sft.contrast import contrastive_loss
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.module import SFTModule
from search_r3.stages.sft.rows import with_reasoning
from search_r3.stages.sft.settings import SelfWritten, SFTLosses
from tests.closeness import assert_close_in_ulps

WEIGHTS = {"sft": 0.5, "kl": 0.5, "info_nce": 1.0, "triplet": 0.5, "reasoned": 1.0}
SETTINGS = {"temperature": 0.05, "margin": 0.1, "false_negative_margin": 1.0}
NEVER = SelfWritten(0, 0.0, 1.0)


def training_data() -> TrainingData:
    examples = []
    for number, text in enumerate(TEXTS[:5]):
        query, document = text.split("\n", 1)
        reasoning = None if number == 4 else document.split("(")[0]
        examples.append(Example(f"e{number}", query, document, f"d{number}", reasoning=reasoning, source="t"))
    corpus = Corpus([e.positive_id for e in examples], [e.positive for e in examples])
    qrels = {e.id: {e.positive_id: 1} for e in examples}
    validation = Benchmark("v", corpus, {e.id: e.query for e in examples}, qrels)
    return TrainingData("t", corpus, examples, validation=validation, texts=TEXTS)


def trainer(max_steps, **arguments):
    return pl.Trainer(
        max_steps=max_steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        check_val_every_n_epoch=None, **arguments,
    )  # fmt: skip


def module_of(embedder, chunk_rows=None, losses=None, written=NEVER, rate=3e-3):
    weights = {**WEIGHTS, **(losses or {})}
    return SFTModule(
        embedder, OptimizationSettings(rate, warmup=0, schedule="constant"), SFTLosses(**weights, **SETTINGS),
        written, chunk_rows, seed=0,
    )  # fmt: skip


def fit(module, steps, data=None, **arguments):
    data = data or training_data()
    datamodule = SFTDataModule(data, module.embedder, 5, 0, 0.0, 0, 5, 5)
    run = trainer(steps, **{"limit_val_batches": 0, **arguments})
    run.fit(module, datamodule)
    return run


@pytest.fixture
def trained_folder(tmp_path):
    return save_embedder(build_embedder(), tmp_path / "base", {}, is_trained=True)


def opened(folder, tuning):
    return open_embedder(path=str(folder), name=None, create=None, prompts={}, lengths={}, tuning=tuning)


def test_sft_overfits_one_batch():
    module = module_of(build_embedder())
    run = fit(module, 40, val_check_interval=40, limit_val_batches=1)
    assert run.callback_metrics["val/direct/ndcg@10"] == 1.0
    assert run.callback_metrics["train/info_nce_direct"] < 0.05
    assert run.callback_metrics["train/info_nce_reasoned"] < 0.05


def gradients(module, chunk_rows):
    """Gradients of one step, taken before the optimizer would clear them."""
    module.chunk_rows = chunk_rows
    kept = {}

    class Keep(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            kept.update({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})

    fit(module, 1, callbacks=[Keep()])
    return kept


@pytest.mark.parametrize("chunk_rows", [1, 3])
def test_gradient_caching_gives_the_plain_gradient_of_all_four_losses(trained_folder, chunk_rows):
    written = SelfWritten(1, 0.5, 1.0)  # imitated rows are there too
    plain = gradients(module_of(opened(trained_folder, FullTuning()), written=written), None)
    cached = gradients(module_of(opened(trained_folder, FullTuning()), written=written), chunk_rows)
    assert max(value.abs().max() for value in plain.values()) > 1e-3
    assert plain.keys() == cached.keys()
    for name, value in plain.items():
        assert_close_in_ulps(cached[name], value, 1024, name)  # a temperature of 0.05 multiplies by 20


class WholeBatch(SFTDataModule):
    """All rows in one batch; the sampler would part those that share a document."""

    def train_dataloader(self):
        return DataLoader([collate_sft(self.examples, 1)], batch_size=None)


def contrastive_gradients(examples):
    """Gradients of a step of the contrastive losses over one batch of all rows, and what it logged."""
    kept = {}

    class Keep(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            kept.update({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})

    module = module_of(build_embedder(), losses={"sft": 0.0, "kl": 0.0})
    run = trainer(1, callbacks=[Keep()], limit_val_batches=0)
    run.fit(
        module, WholeBatch(replace(training_data(), examples=examples), module.embedder, 5, 1, 0.0, 0, 5, 5)
    )
    return kept, run.callback_metrics


def test_a_query_with_all_its_positives_has_the_losses_of_a_row_for_each():
    facts = [text.split("\n", 1)[1] for text in TEXTS[:4]]
    relevant = frozenset({"d0", "d1"})
    pairs = [
        Example("q0", "why", facts[0], "d0", relevant_ids=relevant, reasoning="so", source="t"),
        Example("q1", "how", facts[2], "d2", source="t"),
        Example("q2", "why", facts[1], "d1", relevant_ids=relevant, reasoning="so", source="t"),
        Example("q3", "what", facts[3], "d3", source="t"),
    ]

    merged, logged = contrastive_gradients(one_row_per_query(pairs, 2))
    apart, of_pairs = contrastive_gradients(pairs)

    assert logged["train/info_nce_reasoned"] > 0
    for name in ("info_nce_direct", "info_nce_reasoned", "triplet_direct"):
        assert_close_in_ulps(logged[f"train/{name}"], of_pairs[f"train/{name}"], 256, name)
    assert max(value.abs().max() for value in apart.values()) > 1e-3
    for name, value in apart.items():
        assert_close_in_ulps(merged[name], value, 1024, name)


@pytest.mark.parametrize("loss", ["sft", "kl", "info_nce", "triplet"])
def test_each_loss_alone_reaches_the_weights(trained_folder, loss):
    only = {name: 1.0 if name == loss else 0.0 for name in ("sft", "kl", "info_nce", "triplet")}
    embedder = opened(trained_folder, LoraTuning(4, 8))
    # KL is 0 and flat where policy and base are one, so the policy is moved first.
    fit(module_of(embedder, losses={"kl": 0.0}), 3)
    grads = gradients(module_of(embedder, losses=only), None)
    assert max(value.abs().max() for value in grads.values()) > 1e-6


def test_lora_sft_moves_the_adapter_and_the_tokens_row_only_and_kl_rises_from_zero(trained_folder):
    embedder = opened(trained_folder, LoraTuning(4, 8))
    before = {name: value.clone() for name, value in embedder.model.named_parameters()}
    first = fit(module_of(embedder, chunk_rows=2), 1)
    assert float(first.callback_metrics["train/kl"]) == pytest.approx(0.0, abs=1e-6)
    later = fit(module_of(embedder, chunk_rows=2), 4)
    assert later.callback_metrics["train/kl"] > 1e-5
    changed = {n for n, p in embedder.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in changed)
    assert any("trainable_tokens_delta" in name for name in changed)


def test_kl_is_skipped_where_the_base_is_untrained():
    module = module_of(build_embedder())
    assert not module.has_kl
    assert module_of(build_embedder(), losses={"kl": 0.0}).has_kl is False


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_self_written_reasoning_is_embedded_and_the_given_one_imitated(chunk_rows):
    module = module_of(build_embedder(), written=SelfWritten(1, 0.5, 1.0), chunk_rows=chunk_rows)
    module.trainer = trainer(1)
    batch = collate_sft(training_data().examples, 0)

    def rows():
        chunks, n_written = module.prepare(batch)
        assert with_reasoning(batch) == [0, 1, 2, 3]
        kinds = [
            [row for chunk in chunks for row in getattr(chunk, kind)] for kind in ("reasoned", "imitated")
        ]
        return *kinds, n_written

    reasoned, imitated, n_written = rows()
    module.self_written = NEVER
    given, none, n_never = rows()
    assert (n_written, len(imitated), n_never, none) == (2, 2, 0, [])
    own = [row for row in reasoned if row.answer_at >= row.embed_at]
    assert len(own) == 2
    assert not {row.ids for row in own} & {row.ids for row in given}
    assert {row.ids for row in reasoned} - {row.ids for row in own} | {row.ids for row in imitated} == {
        row.ids for row in given
    }
    assert all(row.answer_at < row.embed_at for row in (*given, *imitated))


def test_a_share_of_few_rows_is_written_for_on_average():
    generator = torch.Generator().manual_seed(1)
    sparse, half = SelfWritten(1, 0.3, 1.0), SelfWritten(1, 0.5, 1.0)
    counts = [len(sparse.places(1, generator)) for _ in range(400)]
    assert set(counts) == {0, 1}
    assert 0.2 < sum(counts) / len(counts) < 0.4
    assert {len(half.places(4, generator)) for _ in range(50)} == {2}, "a whole number is that number"
    assert sorted(SelfWritten(1, 1.0, 1.0).places(5, generator)) == [0, 1, 2, 3, 4]
    assert half.places(0, generator) == []


def test_own_reasoning_that_does_not_end_learns_to_end_where_it_was_ended():
    embedder = build_embedder(seed=3)  # untrained: it hardly ever writes the embed token
    module = module_of(embedder, written=SelfWritten(1, 1.0, 1.0))
    module.trainer = trainer(1)
    batch = collate_sft(training_data().examples, 0)
    chunk = module.prepare(batch)[0][0]
    own = embedder.reason([e.query for e in batch.examples[:4]], seed=0, temperature=1.0)
    assert not all(own.has_embed_token)
    for row in chunk.reasoned:
        ended_by_itself = row.answer_at == len(row.ids)
        assert ended_by_itself or row.answer_at == row.embed_at == len(row.ids) - 1
    assert sum(row.answer_at == row.embed_at for row in chunk.reasoned) == own.has_embed_token.count(False)


def test_direct_answers_supervise_lead_in_token_and_closing():
    embedder = build_embedder()
    from dataclasses import replace

    from search_r3.models.prompts import PromptEncoder

    wording = replace(PROMPTS, lead_in="The embedding is", closing="stop")
    embedder.encoder = PromptEncoder(embedder.tokenizer, wording, embedder.encoder.lengths)
    module = module_of(embedder)
    module.trainer = trainer(1)
    row = module.prepare(collate_sft(training_data().examples[:2], 0))[0][0].direct[0]
    text = embedder.tokenizer.decode(row.ids[row.answer_at :])
    assert text.replace("<|embed_token|>", "|").split("|")[0].strip() == "the embedding is"
    assert row.ids[row.embed_at] == embedder.embed_token_id
    assert text.endswith("stop")


def test_pretraining_learns_the_text():
    embedder = build_embedder()
    data = training_data()
    module = PretrainModule(
        embedder, OptimizationSettings(5e-3, warmup=0, schedule="constant"), micro_batch=2
    )
    losses = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            losses.append(float(trainer.callback_metrics["train/loss"]))

    trainer(60, callbacks=[Keep()]).fit(module, datamodule=PretrainDataModule(data, embedder, 4, 32, None, 0))
    assert losses[0] > 5
    assert losses[-1] < 1.5


def test_a_row_whose_documents_are_all_relevant_does_not_count_in_the_contrastive_losses():
    first, *rest = training_data().examples
    every = frozenset(example.positive_id for example in (first, *rest))
    batch = collate_sft([replace(first, relevant_ids=every), *rest], hard_negatives=0)
    generator = torch.Generator().manual_seed(0)
    documents, direct, reasoned = (
        F.normalize(torch.randn(n, 64, generator=generator), dim=-1) for n in (5, 5, 4)
    )
    losses = SFTLosses(**WEIGHTS, **SETTINGS)
    _, metrics = contrastive_loss((documents, direct, reasoned), batch, range(4), losses)

    for name, queries in (("direct", direct), ("reasoned", reasoned)):
        scores = queries[1:] @ documents.T  # all rows but the first, against all documents
        columns = torch.arange(1, len(queries))
        expected = F.cross_entropy(scores / 0.05, columns)
        assert metrics[f"info_nce_{name}"].item() == pytest.approx(expected.item(), rel=1e-5)
        positive = scores.gather(1, columns[:, None]).squeeze(1)
        hardest = scores.scatter(1, columns[:, None], -2.0).amax(1)
        expected = (0.1 - positive + hardest).clamp(min=0).mean()
        assert metrics[f"triplet_{name}"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_further_term_is_added_with_its_weight_to_both_views(trained_folder):
    """Two terms that are InfoNCE at half its weight each give the step of InfoNCE; nothing else is added."""
    term = {"weight": 0.5, "loss": partial(info_nce, temperature=SETTINGS["temperature"])}
    whole = gradients(module_of(opened(trained_folder, FullTuning())), None)
    parted = module_of(
        opened(trained_folder, FullTuning()), losses={"info_nce": 0.0, "extra": {"a": term, "b": term}}
    )
    for name, value in gradients(parted, None).items():
        assert_close_in_ulps(value, whole[name], 1024, name)
    logged = fit(parted, 1).callback_metrics
    assert logged["train/a_direct"] == logged["train/info_nce_direct"]
    assert logged["train/b_reasoned"] == logged["train/info_nce_reasoned"]


def test_losses_of_which_none_has_a_weight_are_refused():
    without = dict.fromkeys(("sft", "kl", "info_nce", "triplet"), 0.0)
    with pytest.raises(ValueError, match="every weight of losses is 0"):
        SFTLosses(**without, reasoned=1.0, **SETTINGS)
    SFTLosses(**without, reasoned=1.0, **SETTINGS, extra={"mine": {"weight": 0.1, "loss": info_nce}})


@pytest.mark.parametrize(
    "term", [1.0, {"weight": 1.0}, {"weight": -1.0, "loss": info_nce}, {"weight": 1.0, "loss": "info_nce"}]
)
def test_a_further_term_without_weight_or_function_is_refused(term):
    with pytest.raises(ValueError, match=r"losses\.extra\.mine"):
        SFTLosses(**WEIGHTS, **SETTINGS, extra={"mine": term})


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (lambda queries, documents: 0.0, "too many positional arguments"),
        (lambda queries, documents, positive_index, mask: 0.0, "unexpected keyword argument 'denominator'"),
        (lambda *_, mask, denominator, power: 0.0, "missing a required( keyword-only)? argument: 'power'"),
        (partial(hardest_negative_margin, margin=0.1, tau=1.0), "unexpected keyword argument 'tau'"),
    ],
)
def test_a_further_term_that_takes_other_arguments_is_refused_before_anything_is_read(loss, why):
    with pytest.raises(ValueError, match=rf"^losses\.extra\.mine\.loss is .*mask=, denominator=\): .*{why}"):
        SFTLosses(**WEIGHTS, **SETTINGS, extra={"mine": {"weight": 0.1, "loss": loss}})


def test_a_further_term_that_takes_any_arguments_passes():
    for loss in (lambda *_, **__: 0.0, partial(info_nce, temperature=0.1), max):
        SFTLosses(**WEIGHTS, **SETTINGS, extra={"mine": {"weight": 0.1, "loss": loss}})


@pytest.mark.parametrize(
    ("value", "found"),
    [(lambda documents: documents.sum(1), r"a tensor \[\d+\]"), (lambda _: 0.5, "float")],
)
def test_a_further_term_that_gives_no_scalar_is_refused_by_its_name(trained_folder, value, found):
    def own(queries, documents, positive_index, mask, denominator):
        return value(documents)

    losses = {"extra": {"mine": {"weight": 0.1, "loss": own}}}
    module = module_of(opened(trained_folder, FullTuning()), losses=losses)
    with pytest.raises(ValueError, match=rf"^losses\.extra\.mine must give a scalar tensor, got {found};"):
        gradients(module, None)


def test_a_further_term_may_keep_an_axis_of_one(trained_folder):
    def own(queries, documents, positive_index, mask, denominator):
        return (queries**4).sum().reshape(1)

    losses = {"extra": {"mine": {"weight": 0.1, "loss": own}}}
    module = module_of(opened(trained_folder, FullTuning()), losses=losses)
    assert fit(module, 1).callback_metrics["train/mine_direct"].shape == ()


def test_a_further_term_has_a_name_of_its_own():
    with pytest.raises(ValueError, match=r"losses\.extra\.kl"):
        SFTLosses(**WEIGHTS, **SETTINGS, extra={"kl": {"weight": 1.0, "loss": info_nce}})
