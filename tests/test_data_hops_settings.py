"""The generated world as configured: the same for the same arguments, its shares, sizes, card and errors."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import hops_worlds
import numpy as np
import pytest
import pytorch_lightning as pl
from hops_worlds import NAME, SIZES, TEXT, composed, everything, links, load, names_in

from search_r3.cli.instantiate import instantiate
from search_r3.models.prompts import PromptEncoder
from tests.command import PYTHONPATH

default = hops_worlds.default  # fixture
ROOT = Path(__file__).resolve().parents[1]


def test_the_same_arguments_give_the_same_world_and_another_seed_another_one():
    one, same, other = everything(load()), everything(load()), everything(load(seed=2))

    assert one == same
    for mine, theirs in zip(one, other, strict=True):
        assert mine != theirs


def test_the_world_does_not_depend_on_the_process():
    program = (
        "from search_r3.data.hops.reader import *; import hashlib;"
        f"data = load_hops(4, Sizes(sft_queries=7, **{SIZES}), TextSettings(**{TEXT}), 1);"
        "print(hashlib.sha256(repr((data.corpus, data.examples, list(data.texts))).encode()).hexdigest())"
    )
    digests = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": PYTHONPATH}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_the_split_changes_the_examples_only():
    sft, rl = load(), load(split="rl")

    assert everything(sft)[0] == everything(rl)[0]
    assert everything(sft)[2:] == everything(rl)[2:]
    assert {example.id for example in sft.examples}.isdisjoint(example.id for example in rl.examples)


def test_a_line_depends_on_its_row_only_and_texts_travel_to_workers():
    texts = load().texts
    straight = list(texts)

    assert len(texts) == len(straight) == 4000
    assert [texts[row] for row in (3999, 0, -1, np.int64(7))] == [straight[row] for row in (3999, 0, 3999, 7)]
    assert texts[10:20:3] == straight[10:20:3]
    assert list(pickle.loads(pickle.dumps(texts))[:50]) == straight[:50]
    with pytest.raises(IndexError):
        texts[4000]


def test_shares_of_lines_are_as_configured_and_names_come_back_within_a_line():
    data = load(text={"lines": 8000, "question_share": 0.0})
    lines = list(data.texts)
    pages = set(data.corpus.texts)

    assert sum(line in pages for line in lines) / 8000 == pytest.approx(0.1, abs=0.015)
    assert sum(line.startswith("Which") for line in lines) / 8000 == pytest.approx(0.1, abs=0.015)
    assert sum(bool(links(line)) for line in lines) / 8000 == pytest.approx(0.3, abs=0.02)
    unlinked = [line for line in lines if line not in pages and "Which" not in line and not links(line)]
    repeated = [line for line in unlinked if len(re.findall(NAME, line)) > len(set(re.findall(NAME, line)))]
    # Half of the lines tell all facts twice. In the others each of 1 to 5 facts is told twice with
    # probability 1/2, so that nothing comes back in (1/2 + 1/4 + 1/8 + 1/16 + 1/32) / 5 = 0.194 of those.
    assert len(repeated) / len(unlinked) == pytest.approx(1 - 0.194 / 2, abs=0.03)
    assert max(len(names_in(line)) for line in unlinked) == 10  # five facts of two names


def test_a_share_of_the_unlinked_facts_answers_a_question_about_its_subject():
    data = load(text={"chain_share": 0.0, "page_share": 0.0, "query_share": 0.0})
    sentences = [re.findall(r"[^.?]+[.?]", line) for line in data.texts]
    asked = [(line[n], line[n + 1]) for line in sentences for n in range(len(line)) if line[n].endswith("?")]

    n_facts = sum(sentence.endswith(".") for line in sentences for sentence in line)
    assert len(asked) / n_facts == pytest.approx(0.3, abs=0.02)
    for question, answer in asked:
        assert answer.strip().startswith(*names_in(question))


def test_empty_held_out_splits_give_no_benchmark():
    data = load(validation_people=0, test_people=0, rl_people=0, sft_companies=16)

    assert data.validation is None
    assert data.test is None
    assert len(data.examples) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hops": 5}, "hops must be one of 1, 2, 3, 4, got 5"),
        ({"split": "test"}, "split must be one of sft, rl, got 'test'"),
        ({"split": "rl", "rl_people": 0}, "sizes.rl_people, which is 0"),
        ({"sft_queries": 0}, "sizes.sft_queries must be a whole number of at least 1, got 0"),
        ({"sft_queries": 41}, "sizes.sft_queries=41 is more than sizes.sft_people=40"),
        ({"sft_people": 0}, "sizes.sft_people must be a whole number of at least 1, got 0"),
        ({"test_people": -1}, "sizes.test_people must be a whole number of at least 0, got -1"),
        ({"companies": 2.5}, "sizes.companies must be a whole number of at least 1, got 2.5"),
        ({"companies": 97}, r"sizes.companies=97 is more than all sizes.\*_people together=96"),
        ({"sft_companies": 41, "companies": 60}, "sizes.sft_companies=41 is more than sizes.sft_people=40"),
        ({"sft_companies": 16}, "leaves 0 for the 56 people"),
        ({"companies": 70}, "leaves 58 for the 56 people"),
        ({"cities": 17}, "sizes.cities=17 is more than sizes.companies=16"),
        ({"hops": 1, "cities": 97}, "sizes.cities=97 is more than all"),
        ({"hops": 3, "regions": 13}, "sizes.regions=13 is more than sizes.cities=12"),
        ({"cities": 1}, "sizes.cities is the number of pages, at least 2; got 1"),
        ({"cities": 2, "other_pages": 3}, "other_pages=3 is more than the 2 names .* sizes.cities=2"),
        ({"other_pages": -1}, "sizes.other_pages must be a whole number of at least 0, got -1"),
        ({"hops": 4, "rl_people": 1}, "sizes.rl_people must be 0 or at least 2 with hops=4"),
        ({"text": {"lines": 0}}, "text.lines must be a whole number of at least 1, got 0"),
        ({"text": {"facts_per_line": 0}}, "text.facts_per_line must be"),
        ({"text": {"chain_share": 1.2}}, r"text.chain_share must be in \[0, 1\], got 1.2"),
        ({"text": {"question_share": -0.1}}, r"text.question_share must be in \[0, 1\], got -0.1"),
        ({"text": {"chain_share": 0.8}}, "must leave a share for facts, they sum to 1"),
    ],
)
def test_an_impossible_setting_is_one_error_that_names_its_key(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**arguments)


@pytest.mark.parametrize(("n", "n_words"), [(30, 2), (132, 2), (133, 3)])
def test_other_pages_are_named_after_places_and_change_nothing_else(n, n_words):
    few, many = load(cities=12), load(cities=12, other_pages=n)
    places, others = many.corpus.ids[:12], many.corpus.ids[12:]

    assert (places, many.corpus.texts[:12]) == (few.corpus.ids, few.corpus.texts)
    assert many.examples == few.examples
    assert list(many.texts) == list(few.texts)
    assert many.test.qrels == few.test.qrels
    assert len(set(others)) == n
    assert {len(name.split()) for name in others} == {n_words}
    assert {word for name in others for word in name.split()} == set(places)
    assert many.card["documents"] == len(many.test.corpus) == 12 + n


def test_sizes_that_a_route_does_not_use_are_not_checked():
    assert len(load(1, companies=1, regions=500).corpus) == 12
    assert len(load(2, regions=500).corpus) == 12


def test_the_card_tells_counts_chance_and_an_example(default):
    card = default.card

    assert card["people"] == {"sft": 120, "rl": 300, "validation": 60, "test": 160}
    assert card["things"] == {"company": 240, "city": 80}
    assert card["facts"] == {"works": 640, "seat": 240}
    assert card["chance_ndcg@10"] == 0.0568  # 4.5436 / 80, where 4.5436 = 1 + 1/log2(3) + ... + 1/log2(11)
    (example,) = card["examples"]
    assert example["reasoning"] == default.examples[0].reasoning
    assert example["document"] == default.examples[0].positive


def test_names_are_one_token_each_and_all_texts_fit_the_configured_model(default):
    embedder = instantiate(composed().model, texts=default.texts)
    encoder: PromptEncoder = embedder.encoder
    names = {name for line in default.texts[:5000] for name in names_in(line)}

    assert len(names) == 640 + 240 + 80
    assert {len(ids) for ids in encoder.text_ids(sorted(names))} == {1}
    reasoning = default.examples[0].reasoning
    back = embedder.tokenizer.decode(encoder.plain_ids(reasoning)).strip()
    assert back == reasoning.lower().replace(".", "")
    assert 1.15e6 < sum(weight.numel() for weight in embedder.parameters()) < 1.25e6
    assert encoder.truncated_count(list(default.test.queries.values()), "query") == 0
    assert encoder.truncated_count(default.corpus.texts, "document") == 0
    for hops in (1, 2, 3, 4):
        data = instantiate(composed(f"data.hops={hops}", "data.text.lines=1").data)
        written = [example.reasoning for example in data.examples]
        # Names of another world fall apart in this tokenizer; counted in words, of which each is one token.
        assert max(len(text.split()) for text in written) <= encoder.lengths.reasoning - 1
        assert max(len(example.query.split()) for example in data.examples) <= encoder.lengths.query


def test_the_sft_stage_takes_the_data_as_composed_and_trains_a_step(tmp_path):
    config = composed(
        "data.text.lines=500", "stage.datamodule.batch_size=16", "stage.module.self_written.every_n_steps=0"
    )
    data = instantiate(config.data)
    embedder = instantiate(config.model, texts=data.texts)
    datamodule = instantiate(config.stage.datamodule, data=data, embedder=embedder)
    module = instantiate(config.stage.module, embedder=embedder)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    before = {name: value.detach().clone() for name, value in embedder.named_parameters()}
    trainer.fit(module, datamodule)

    assert trainer.global_step == 2
    kept = [name for name, value in embedder.named_parameters() if value.equal(before[name])]
    assert kept == ["model.model.embed_tokens.weight"]  # names keep their vectors
    batch = next(iter(datamodule.train_dataloader()))
    assert len(batch.examples) == len(batch.documents) == 16  # no two rows of one page meet
    assert all(example.reasoning for example in batch.examples)
    assert len(datamodule.validation.queries) == 60
