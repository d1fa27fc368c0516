"""The SFT stage with its real data module: a step by its definition, and where a run goes on."""

from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import TEXTS, build_embedder
from rl_runs import fit
from test_sft import NEVER, SETTINGS, WEIGHTS, opened, trainer, training_data

from search_r3.data.types import Corpus, Example, TrainingData
from search_r3.evaluation.metrics import METRICS
from search_r3.models.folder import save_embedder
from search_r3.models.tuning import FullTuning
from search_r3.stages.checkpoint import TrainableCheckpoint
from search_r3.stages.optimization import OptimizationSettings
from search_r3.stages.pretrain.data import PretrainDataModule
from search_r3.stages.pretrain.module import PretrainModule
from search_r3.stages.record import ValidationRecord
from search_r3.stages.sft.data import SFTDataModule
from search_r3.stages.sft.module import SFTModule
from search_r3.stages.sft.settings import SFTLosses

DOCUMENTS = [text.split("\n", 1)[1] for text in TEXTS[:5]] + [f"def nothing_{n}(x): pass" for n in range(3)]
QUERIES = [text.split("\n")[0] for text in TEXTS[:5]]
RELEVANT = [{0, 1}, {1}, {2, 0, 3}, {3}, {4, 6}]  # documents by query; the positive has the query's number
HARD = [(5, 6, 7), (6, 5, 7), (5, 6, 7), (6,), (5,)]
WITH_REASONING = (0, 2, 3)  # not the first rows of the batch, so that taking the first ones is seen
N_HARD = 2
IN_BATCH = range(7)  # document 7 is the third hard negative of some rows, and two are asked for


def rows_with_everything() -> TrainingData:
    """Five rows with hard negatives, several relevant documents, and reasoning on some."""
    examples = [
        Example(
            id=f"e{n}", query=QUERIES[n], positive=DOCUMENTS[n], positive_id=f"d{n}",
            hard_negatives=tuple(DOCUMENTS[i] for i in HARD[n]),
            hard_negative_ids=tuple(f"d{i}" for i in HARD[n]),
            relevant_ids=frozenset(f"d{i}" for i in RELEVANT[n]),
            reasoning=DOCUMENTS[n].split("(")[0] if n in WITH_REASONING else None,
        )
        for n in range(5)
    ]  # fmt: skip
    return TrainingData("t", Corpus([f"d{n}" for n in range(8)], DOCUMENTS), examples, texts=TEXTS)


def data_of(data, embedder, hard_negatives=0, batch_size=5, **settings):
    arguments = {"cluster_share": 0.0, "seed": 0, "validation_queries": 5, "validation_documents": 5}
    return SFTDataModule(data, embedder, batch_size, hard_negatives, **arguments | settings)


def module_of(embedder, chunk_rows=None, **losses):
    settings = SFTLosses(**{**WEIGHTS, **SETTINGS, **losses})
    optimization = OptimizationSettings(3e-3, warmup=0, schedule="constant")
    return SFTModule(embedder, optimization, settings, NEVER, chunk_rows, seed=0)


def contrast_by_definition(queries, documents, numbers, losses):
    """InfoNCE and margin of some queries `[n, D]`, of the numbers given, one similarity after the other.

    Returns:
        (InfoNCE, margin, how many documents the score masks).
    """
    nce, hinge, n_masked = [], [], 0
    for vector, number in zip(queries.double(), numbers, strict=True):
        cosines = [float(vector @ documents[column].double()) for column in IN_BATCH]
        positive = cosines[number]
        negatives = []
        for column in IN_BATCH:
            if column == number:
                continue
            is_high = cosines[column] > positive + losses["false_negative_margin"]
            n_masked += is_high
            if not is_high and column not in RELEVANT[number]:
                negatives.append(cosines[column])
        assert negatives  # or nothing is compared
        logits = np.array([positive, *negatives]) / losses["temperature"]
        nce.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0])
        hinge.append(max(0.0, losses["margin"] - positive + max(negatives)))
    return np.mean(nce), np.mean(hinge), n_masked


def cross_entropy_by_definition(embedder):
    """Mean over the embed token of every query, and the reasoning and embed token of those that have one."""
    encoder, losses = embedder.encoder, []

    def add(prompt, answer):
        logits = embedder.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
        for place, token in enumerate(answer, start=len(prompt)):
            losses.append(-float(logits[place - 1].log_softmax(-1)[token]))

    with torch.no_grad():
        for ids in encoder.queries(QUERIES):
            add(ids[:-1], ids[-1:])
        for number in WITH_REASONING:
            (prompt,) = encoder.reasoning_prompts([QUERIES[number]])
            (given,) = encoder.reasonings([DOCUMENTS[number].split("(")[0]])
            add(prompt, [*given, embedder.embed_token_id])
    return np.mean(losses)


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_a_step_of_the_stage_is_the_weighted_sum_of_its_losses_by_definition(chunk_rows):
    weights = {"sft": 0.7, "kl": 0.0, "info_nce": 1.5, "triplet": 0.6, "reasoned": 0.25}
    settings = {"temperature": 0.07, "margin": 0.15, "false_negative_margin": 0.02}
    embedder, same = build_embedder(), build_embedder()
    run = trainer(1, limit_val_batches=0)
    run.fit(
        module_of(embedder, chunk_rows, **weights, **settings),
        data_of(rows_with_everything(), embedder, N_HARD),
    )
    found = {name.removeprefix("train/"): float(value) for name, value in run.callback_metrics.items()}

    documents = same.embed_documents(DOCUMENTS)
    reasonings = [DOCUMENTS[number].split("(")[0] for number in WITH_REASONING]
    views = {
        "direct": (same.embed_queries(QUERIES), range(5)),
        "reasoned": (same.embed_reasoned([QUERIES[n] for n in WITH_REASONING], reasonings), WITH_REASONING),
    }
    total = weights["sft"] * cross_entropy_by_definition(same)
    assert found["sft"] == pytest.approx(cross_entropy_by_definition(same), rel=1e-5)
    for name, (queries, numbers) in views.items():
        nce, hinge, n_masked = contrast_by_definition(queries, documents, numbers, settings)
        assert found[f"info_nce_{name}"] == pytest.approx(nce, rel=1e-4)
        assert found[f"triplet_{name}"] == pytest.approx(hinge, rel=1e-4)
        assert found[f"masked_by_score_{name}"] == n_masked > 0
        assert found[f"candidates_{name}"] == len(numbers) * (len(IN_BATCH) - 1)
        weight = weights["reasoned"] if name == "reasoned" else 1.0
        total += weight * (weights["info_nce"] * nce + weights["triplet"] * hinge)
    assert found["masked_by_id"] == 1 + 2 + 1  # d1 of e0; d0 and d3 of e2; d6 of e4
    assert found["loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("hard_negatives", [0, 1, 2, 3])
def test_the_batch_holds_the_positives_and_as_many_hard_negatives_of_a_row_as_were_asked_for(hard_negatives):
    embedder, seen = build_embedder(), []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch)

    data = data_of(rows_with_everything(), embedder, hard_negatives)
    trainer(1, limit_val_batches=0, callbacks=[Keep()]).fit(module_of(embedder), data)
    (batch,) = seen
    wanted = {f"d{n}" for n in range(5)} | {f"d{i}" for row in HARD for i in row[:hard_negatives]}
    assert len(wanted) == [5, 7, 7, 8][hard_negatives]
    assert sorted(batch.document_ids) == sorted(wanted)
    assert [batch.document_ids[column] for column in batch.positive_index] == [
        example.positive_id for example in batch.examples
    ]
    texts = dict(zip(batch.document_ids, batch.documents, strict=True))
    assert all(text == DOCUMENTS[int(document[1:])] for document, text in texts.items())


def many_rows() -> TrainingData:
    data = training_data()
    examples = [
        replace(
            data.examples[n % 5], id=f"e{n}", query=f"{data.examples[n % 5].query} {n}", positive_id=f"d{n}"
        )
        for n in range(24)
    ]
    return replace(data, examples=examples)


def pretraining(embedder):
    module = PretrainModule(
        embedder, OptimizationSettings(1e-3, warmup=0, schedule="constant"), micro_batch=2
    )
    return module, PretrainDataModule(many_rows(), embedder, 2, 16, None, 0)


def supervised(embedder):
    return module_of(embedder), data_of(many_rows(), embedder, batch_size=4)


@pytest.mark.parametrize("stage", [supervised, pretraining])
def test_a_resumed_run_takes_the_batches_that_the_interrupted_one_had_not_trained_on(stage, tmp_path):
    """The loader has fetched more than that when a checkpoint is written."""

    def run(name, steps, ckpt_path=None):
        seen = []

        class Keep(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                ids = batch.tolist() if torch.is_tensor(batch) else [example.id for example in batch.examples]
                seen.append(ids)

        module, data = stage(build_embedder())
        saving = TrainableCheckpoint(tmp_path / name, save_every_n_steps=1)
        fit(module, data, steps, [saving, Keep()], ckpt_path)
        return seen

    whole = run("whole", 6)
    assert len(whole) == 6
    assert len({str(sorted(batch)) for batch in whole}) == 6
    assert run("cut", 3) == whole[:3]
    assert run("cut", 6, tmp_path / "cut" / "last.ckpt") == whole[3:]


@pytest.mark.parametrize(
    ("is_trained", "weight", "has_kl"), [(True, 0.5, True), (True, 0.0, False), (False, 0.5, False)]
)
def test_a_stage_keeps_a_reference_only_where_there_is_kl_to_it(tmp_path, is_trained, weight, has_kl):
    folder = save_embedder(build_embedder(), tmp_path / "model", {}, is_trained=is_trained)
    module = module_of(opened(folder, FullTuning()), kl=weight)
    assert module.has_kl == has_kl
    assert (module.reference is not None) == has_kl


@pytest.mark.parametrize(("text_length", "seed"), [(None, 0), (7, 0), (7, 5)])
def test_pretraining_reads_every_text_once_joined_by_the_end_token_and_cut_into_blocks(text_length, seed):
    embedder, data, seen = build_embedder(), many_rows(), []

    class Keep(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.extend(batch.tolist())

    module = PretrainDataModule(data, embedder, 1, 16, text_length, seed)
    learner = PretrainModule(embedder, OptimizationSettings(1e-9, warmup=0, schedule="constant"), 2)
    tokenizer, stream = embedder.tokenizer, []
    for row in np.random.default_rng(seed).permutation(len(data.texts)):
        ids = tokenizer(data.texts[row], add_special_tokens=False)["input_ids"]
        stream += [*ids[:text_length], tokenizer.eos_token_id]
    blocks = [stream[start : start + 16] for start in range(0, len(stream) - 15, 16)]
    fit(learner, module, len(blocks), [Keep()])
    assert len(blocks) > 5
    assert sorted(seen) == sorted(blocks)


def test_the_record_of_a_validation_holds_its_finite_numbers_and_nothing_of_training():
    record = ValidationRecord()

    class AlsoNothing(SFTModule):
        def validation_step(self, benchmark, batch_idx):
            super().validation_step(benchmark, batch_idx)
            self.log("val/nothing", float("nan"), batch_size=1)

    embedder = build_embedder()
    losses = SFTLosses(**WEIGHTS, **SETTINGS)
    optimization = OptimizationSettings(1e-3, warmup=0, schedule="constant")
    module = AlsoNothing(embedder, optimization, losses, NEVER, None, seed=0)
    data = data_of(training_data(), embedder)
    run = trainer(4, val_check_interval=2, callbacks=[record], num_sanity_val_steps=0)
    run.fit(module, data)
    assert "train/loss" in run.callback_metrics
    assert "val/nothing" in run.callback_metrics
    assert list(record.by_step) == [2, 4]
    modes = [f"val/{mode}/{metric}" for mode in ("direct", "reasoning") for metric in METRICS]
    for found in record.by_step.values():
        assert sorted(found) == sorted([*modes, "val/has_embed_token", "val/reasoning_tokens"])
    assert record.at(None) == record.at(4)
    assert record.at(2) != record.at(4)
