"""The generated world: what can be known from where, and that nothing else can."""

import math
import os
import pickle
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import Stemmer

from search_r3.cli.compose import compose
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.instantiate import instantiate
from search_r3.data.hops.reader import chance_ndcg, load_hops
from search_r3.data.hops.settings import Sizes, TextSettings
from search_r3.evaluation.metrics import mean_metrics, per_query_metrics, query_metrics
from search_r3.index.backends.bm25 import ANALYZERS, LexicalIndex, analyze
from search_r3.models.prompts import PromptEncoder
from tests.command import PYTHONPATH

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "sft_people": 40,
    "rl_people": 24,
    "validation_people": 8,
    "test_people": 24,
    "companies": 16,
    "sft_companies": 12,
    "cities": 12,
    "regions": 6,
}
TEXT = {
    "lines": 4000,
    "facts_per_line": 5,
    "chain_share": 0.3,
    "page_share": 0.1,
    "query_share": 0.1,
    "question_share": 0.3,
}

# Read from the sentences, not from the code: what a fact looks like in the words of a reasoning.
NAME = "([A-Z][a-z]+)"
SENTENCES = {
    "lives": rf"{NAME} lives in {NAME}\.",
    "mentor": rf"The mentor of {NAME} is {NAME}\.",
    "works": rf"{NAME} works at {NAME}\.",
    "seat": rf"(?<!of ){NAME} is in {NAME}\.",
    "part": rf"{NAME} lies in {NAME}\.",
}
PATHS = {
    1: ["lives"],
    2: ["works", "seat"],
    3: ["works", "seat", "part"],
    4: ["mentor", "works", "seat", "part"],
}
QUERIES = {
    1: rf"Which city does {NAME} live in\?",
    2: rf"Which city does {NAME} work in\?",
    3: rf"Which region does {NAME} work in\?",
    4: rf"Which region does the mentor of {NAME} work in\?",
}
NO_NAMES = {"The", "Among", "Which", "It", "Visitors", "In", "What", "And", "Who"}
"""Capitalised words that are no names."""


def load(hops=2, split="sft", seed=1, text=(), **sizes):
    sizes = SIZES | sizes
    sizes.setdefault("sft_queries", sizes["sft_people"])
    return load_hops(hops, Sizes(**sizes), TextSettings(**(TEXT | dict(text))), seed, split)


def composed(*overrides):
    with ConfigSource() as source:
        return compose("train", ["stage=sft", "data=hops", "model=nano_hops", *overrides], source).config


@pytest.fixture(scope="module")
def default():
    """The data set as configured."""
    return instantiate(composed().data)


def names_in(text):
    return set(re.findall(NAME, text)) - NO_NAMES


def facts_told(texts):
    """Object by subject and relation, read line by line; a second object for one subject is an error."""
    facts = {relation: {} for relation in SENTENCES}
    for line in texts:
        for relation, pattern in SENTENCES.items():
            for a, b in re.findall(pattern, line):
                assert facts[relation].setdefault(a, b) == b, (relation, a)
    return facts


def person_of(query, hops):
    return re.fullmatch(QUERIES[hops], query)[1]


def followed(person, hops, facts):
    for relation in PATHS[hops]:
        person = facts[relation][person]
    return person


def held_out_people(data, hops):
    queries = [*data.validation.queries.values(), *data.test.queries.values()]
    return {person_of(query, hops) for query in queries}


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_judgements_and_reasonings_follow_from_the_facts_that_the_text_tells(hops):
    sft, rl = load(hops, text={"lines": 12000}), load(hops, split="rl")
    facts = facts_told(sft.texts)

    for data in (sft, rl):
        for example in data.examples:
            place = followed(person_of(example.query, hops), hops, facts)
            assert example.positive_id == place.lower()
            assert example.relevant_ids == {place.lower()}
            assert example.positive == data.corpus.texts[data.corpus.row_of[place.lower()]]
    for benchmark in (sft.validation, sft.test):
        assert benchmark.queries.keys() == benchmark.qrels.keys()
        for query, text in benchmark.queries.items():
            assert benchmark.qrels[query] == {followed(person_of(text, hops), hops, facts).lower(): 1}
    for example in sft.examples:
        told = facts_told([example.reasoning])
        assert sum(map(len, told.values())) == hops == example.reasoning.count(".")
        assert followed(person_of(example.query, hops), hops, told).lower() == example.positive_id
    assert all(example.reasoning is None for example in rl.examples)


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_splits_are_disjoint_and_every_place_is_asked_for(hops):
    sft, rl = load(hops), load(hops, split="rl")
    groups = [
        [person_of(example.query, hops) for example in sft.examples],
        [person_of(example.query, hops) for example in rl.examples],
        [person_of(query, hops) for query in sft.validation.queries.values()],
        [person_of(query, hops) for query in sft.test.queries.values()],
    ]

    assert [len(group) for group in groups] == [40, 24, 8, 24]
    assert len(set().union(*groups)) == 96
    assert {example.positive_id for example in sft.examples} == set(sft.corpus.ids)
    assert len(sft.corpus) == (12 if hops < 3 else 6)


def test_sft_may_ask_about_some_of_its_people_only_and_nothing_else_depends_on_it():
    all_asked, some = load(), load(sft_queries=7)

    assert some.examples == all_asked.examples[:7]
    assert list(some.texts[:50]) == list(all_asked.texts[:50])
    assert load(split="rl", sft_queries=7).examples == load(split="rl").examples


@pytest.mark.parametrize("hops", [2, 3, 4])
def test_sft_people_share_no_company_with_anyone_else(hops):
    data = load(hops, text={"lines": 12000})
    facts = facts_told(data.texts)["works"]
    mentors = facts_told(data.texts)["mentor"]
    trained = {person_of(example.query, hops) for example in data.examples}
    own = {company for person, company in facts.items() if person in trained}

    assert own.isdisjoint({company for person, company in facts.items() if person not in trained})
    assert len(own) == 12
    assert len(set(facts.values())) == 16
    assert {mentors[person] for person in trained if person in mentors} <= trained


def links(line):
    """Pairs of different facts of a line that share a name: sentences with other, overlapping names."""
    said = {frozenset(names_in(sentence)) for sentence in re.findall(r"[^.?]+[.?]", line)}
    facts = [names for names in said if len(names) > 1]  # a question has one name
    return [(a, b) for a, b in combinations(facts, 2) if a & b]


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_only_facts_of_sft_people_are_ever_linked(hops):
    data = load(hops)
    trained = {person_of(example.query, hops) for example in data.examples}
    held_out = held_out_people(data, hops) | {
        person_of(example.query, hops) for example in load(hops, split="rl").examples
    }
    n_linked, told = 0, set()

    for line in data.texts:
        names = names_in(line)
        told |= names & held_out
        if links(line):
            n_linked += 1
            assert names & trained, line
            assert not names & held_out, line
        assert not ("Which" in line and names & held_out), line
    assert told == held_out  # their facts are there
    assert hops == 1 or n_linked > 1000  # the check can fail


@pytest.mark.parametrize("hops", [2, 3])
def test_a_held_out_person_is_not_named_with_its_own_place_more_often_than_with_others(hops):
    data = load(hops, cities=12, text={"lines": 20000})
    held_out, facts = held_out_people(data, hops), facts_told(data.texts)
    places = names_in(" ".join(data.corpus.texts))
    own = other = 0
    for names in map(names_in, data.texts):
        for person in names & held_out:
            own += followed(person, hops, facts) in names
            other += len(names & places - {followed(person, hops, facts)})

    expected = other / (len(places) - 1)
    assert expected > 50
    assert own < expected + 3 * math.sqrt(expected)


def test_people_outside_sft_are_in_no_training_query_and_no_reasoning():
    data = load()
    written = " ".join(f"{example.query} {example.reasoning} {example.positive}" for example in data.examples)

    assert not names_in(written) & held_out_people(data, 2)
    assert names_in(written) & {person_of(example.query, 2) for example in data.examples}
    rl = load(split="rl")
    assert not names_in(" ".join(example.query for example in rl.examples)) & held_out_people(data, 2)


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_a_page_names_its_own_place_and_nothing_else(hops):
    data = load(hops)

    for document, text in zip(data.corpus.ids, data.corpus.texts, strict=True):
        assert {name.lower() for name in names_in(text)} == {document}
    assert len(set(data.corpus.texts)) == len(data.corpus)


@pytest.mark.parametrize("analyzer", ANALYZERS)
def test_bm25_is_at_chance_on_queries_and_perfect_on_the_chain(default, analyzer):
    test, n = default.test, len(default.corpus)
    names, queries = list(test.queries), list(test.queries.values())
    index = LexicalIndex(test.corpus.texts, analyzer)

    def measured(texts, ids, qrels):
        run = {}
        for query, scores, rows in zip(ids, *index.search(texts, n), strict=True):
            found = zip(rows.tolist(), scores.tolist(), strict=True)
            run[query] = {test.corpus.ids[row]: score for row, score in found if row >= 0}
        return mean_metrics(per_query_metrics(run, qrels))["ndcg@10"]

    # One of N documents is relevant; a random ranking has it at each rank with probability 1/N.
    gains = [1 / math.log2(rank + 1) if rank <= 10 else 0.0 for rank in range(1, n + 1)]
    chance, spread = np.mean(gains), np.std(gains) / math.sqrt(len(queries))
    rows = index.search(queries, n)[1]
    assert (rows == rows[0]).all()  # the person changes nothing
    assert (rows >= 0).all()  # and yet something matches, so this is a ranking
    assert abs(measured(queries, names, test.qrels) - chance) < 3 * spread

    chains = [example.reasoning for example in default.examples]
    ids = [example.id for example in default.examples]
    judged = {example.id: {example.positive_id: 1} for example in default.examples}
    assert measured(chains, ids, judged) == 1.0


def test_chance_is_the_mean_over_all_ranks():
    for n in (2, 7, 10, 80):
        ids = [str(i) for i in range(n)]
        scores = {document: float(n - row) for row, document in enumerate(ids)}
        slow = np.mean([query_metrics(scores, {document: 1})["ndcg@10"] for document in ids])
        assert chance_ndcg(n) == pytest.approx(slow)


def test_names_share_no_word_between_kinds_with_the_sentences_or_after_stemming():
    data = load(3, sft_people=3000, companies=300, sft_companies=250, cities=100)
    facts = facts_told(
        load(3, sft_people=3000, companies=300, sft_companies=250, cities=100, text={"lines": 60000}).texts
    )
    kinds = [
        {example.id for example in data.examples},
        {name.lower() for name in facts["works"].values()},
        {name.lower() for name in facts["seat"].values()},
        set(data.corpus.ids),
    ]
    assert [len(kind) for kind in kinds] == [3000, 300, 100, 6]
    everything = set().union(*kinds)
    assert len(everything) == 3406
    stemmer = Stemmer.Stemmer("english")
    for analyzer in ANALYZERS:
        assert len({tuple(analyze(name, analyzer, stemmer, {})) for name in everything}) == 3406
    words = {word for line in data.texts[:500] for word in re.findall(r"\b[a-z]+\b", line)}
    words |= {word.lower() for word in NO_NAMES}
    assert not words & everything


def everything(data):
    return data.corpus.fingerprint, data.examples, list(data.texts), dict(data.test.queries), data.test.qrels


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
    assert encoder.truncated_share(list(default.test.queries.values()), "query") == 0
    assert encoder.truncated_share(default.corpus.texts, "document") == 0
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
