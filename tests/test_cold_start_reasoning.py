"""The reasoning that SFT begins with, made of a query and its document."""

from mined_packages import stdlib_sources

from search_r3.data.cold_start import cold_start_reasoning, identifier_words
from search_r3.data.pydocs.docstrings import (
    mine_functions,
)


def test_reasoning_goes_from_shared_words_to_name_to_arguments_to_types_to_characteristic_words():
    document = (
        "def loadHTTPPage(self, url: str, retry_policy: Policy = None) -> Page:\n"
        "    if not url:\n        raise MissingAddress('address')\n    return common(common, zebra)\n"
    )
    text = cold_start_reasoning("Fetch the zebra from a url", document, {"common": 9, "fetched": 1}, 10)
    assert text == "zebra url, load http page, retry policy, missing address, common"
    # tf-idf of 20 documents: zebra 1 * ln(21 / 5.5) = 1.34, common 2 * ln(21 / 15.5) = 0.61; address is rare
    counts = {"common": 15, "zebra": 5, "address": 4}
    counted = cold_start_reasoning("Fetch it", document, counts, 20)
    assert counted == "load http page, url retry policy, missing address, zebra common"
    with_rare = cold_start_reasoning("Fetch it", document, counts, 20, n_types=0, min_frequency=4)
    assert with_rare == "load http page, url retry policy, address zebra common"
    assert cold_start_reasoning("Fetch it", document, max_words=4) == "load http page, url"


def test_reasoning_is_one_line_without_repeats_and_within_its_limit():
    for source in stdlib_sources().values():
        for mined in mine_functions(source):
            text = cold_start_reasoning(mined.query, mined.document)
            words = text.replace(",", "").split()
            assert "\n" not in text
            assert len(words) <= 14
            assert text == cold_start_reasoning(mined.query, mined.document)
            assert len(set(words)) == len(words)
            assert set(words) <= set(identifier_words(mined.document))
            asked = identifier_words(mined.query)
            shared = [word for word in words if word in asked]
            assert shared == words[: len(shared)] == sorted(shared, key=asked.index)


def test_reasoning_says_the_rarest_words_of_the_query_again_in_its_order():
    counts = {"parse": 3, "header": 2, "file": 90}
    document = "def read(file): return parse(header(file))"
    text = cold_start_reasoning("Parse a file with a long header", document, counts, 100, n_query=2)
    assert text.split(",")[0] == "parse header"
    assert cold_start_reasoning("Parse a file with a long header", document).startswith(
        "parse file header, read"
    )


def test_reasoning_may_say_words_of_the_query_that_the_positive_does_not_have():
    document = "def read(file): return parse(header(file))"
    text = cold_start_reasoning("Parse a file with a long header", document, n_query=3, only_shared=False)
    assert text.startswith("parse file long, read")


def test_reasoning_of_plain_text_is_shared_and_then_other_words():
    assert cold_start_reasoning("cells", "The rare mitochondria of cells.") == "cells, rare mitochondria"
    assert cold_start_reasoning("", "") == ""


def test_words_of_a_text_are_whole_in_any_language_and_a_def_is_read_as_code():
    document = "Die Größe der Straße beträgt 12 Meter."
    assert cold_start_reasoning("Wie groß ist die Straße?", document) == "die straße, größe der beträgt meter"
    assert cold_start_reasoning("Какой длины река?", "Длина река Волга") == "река, длина волга"
    assert cold_start_reasoning("sum", "def größe(wert): return getSum(wert)") == "sum, gr, wert, get"
