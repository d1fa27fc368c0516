"""The generated world: what can be known from where, and that nothing else can."""

import math
import re

import hops_worlds
import numpy as np
import pytest
import Stemmer
from hops_worlds import (
    NO_NAMES,
    facts_told,
    followed,
    held_out_people,
    links,
    load,
    names_in,
    person_of,
)

from search_r3.data.hops.reader import chance_ndcg
from search_r3.evaluation.metrics import mean_metrics, per_query_metrics, query_metrics
from search_r3.index.backends.bm25 import ANALYZERS, LexicalIndex, analyze

default = hops_worlds.default  # fixture


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
