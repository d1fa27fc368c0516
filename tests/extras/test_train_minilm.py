"""A sentence encoder trained on the rows of the science experiment, by its own library."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from small_collection import write_encoder
from test_data_entailmentbank import write_bank, write_lines

from experiments.science.train_minilm import KnownPositivesLoss, main, science_rows
from search_r3.data.entailmentbank import load_entailmentbank
from search_r3.data.types import Example
from search_r3.models.sentence_transformer import load_sentence_transformer


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """720 questions, of which 12 are left for SFT, in words that BM25 finds."""
    root = write_bank(tmp_path_factory.mktemp("bank") / "bank", n_train=720)
    write_lines(root / "corpus.jsonl", [{"_id": f"f{n}", "text": f"planet fact {n}"} for n in range(1447)])
    write_lines(root / "queries.jsonl", [{"_id": f"q{n}", "text": f"planet q{n}?"} for n in range(723)])
    return root


def row(name, relevant, negative):
    return Example(
        name, f"asks {name}", f"says {name}", name, hard_negatives=(f"says {negative}",),
        hard_negative_ids=(negative,), relevant_ids=frozenset(relevant),
    )  # fmt: skip


def losses(folder, rows):
    """Ours and the library's, and the cosines `[B, 2 B]` that both are of."""
    model = SentenceTransformer(str(folder), device="cpu").eval()
    texts = [[each.query for each in rows], [each.positive for each in rows]]
    texts.append([each.hard_negatives[0] for each in rows])
    features = [model.preprocess(column) for column in texts]
    labels = torch.arange(len(rows))
    found = [
        loss([dict(each) for each in features], labels)
        for loss in (KnownPositivesLoss(model, rows), MultipleNegativesRankingLoss(model))
    ]
    queries, *documents = (model.encode(column, convert_to_tensor=True) for column in texts)
    return *found, model.similarity(queries, torch.cat(documents))


def test_the_loss_is_the_librarys_where_nothing_else_is_relevant(encoder):
    ours, theirs, _ = losses(encoder, [row("a", "a", "x"), row("b", "b", "y")])
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_known_positives_are_no_negatives(encoder):
    rows = [row("a", "ab", "x"), row("b", "b", "y"), row("c", "cx", "z")]  # columns: a b c x y z

    ours, theirs, cosines = losses(encoder, rows)

    kept = {0: [0, 2, 3, 4, 5], 1: [0, 1, 2, 3, 4, 5], 2: [0, 1, 2, 4, 5]}
    terms = [
        torch.logsumexp(20 * cosines[place, columns], 0) - 20 * cosines[place, place]
        for place, columns in kept.items()
    ]
    assert ours.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-4)
    assert theirs.item() > ours.item() + 0.01


def test_its_rows_are_those_of_sft_and_it_writes_folders_that_are_evaluated(bank, encoder, tmp_path):
    rows = science_rows(bank)
    sft = load_entailmentbank(bank, split="sft").examples
    assert [(each.query, each.positive_id) for each in rows] == [(e.query, e.positive_id) for e in sft]
    assert len(rows) == 24
    assert all(set(each.hard_negative_ids).isdisjoint(each.relevant_ids) for each in rows)

    given = [str(bank), "--model", str(encoder), "--epochs", "2", "--batch", "4", "--learning-rate", "0.01"]
    main([*given, "--seeds", "1", "2", "--output", str(tmp_path / "one")])
    main([*given, "--seeds", "1", "--output", str(tmp_path / "again")])

    one, other, again = (
        load_sentence_transformer(tmp_path / name).embed_queries(["planet q1?"])
        for name in ("one/seed1", "one/seed2", "again/seed1")
    )
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-4
    before = load_sentence_transformer(encoder).embed_queries(["planet q1?"])
    assert (one - before).abs().max() > 1e-3
