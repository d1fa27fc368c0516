"""Near-duplicates are found without comparing all pairs."""

import random
from itertools import pairwise

from search_r3.data.pydocs.duplicates import NearDuplicates, bands, jaccard, shingles


def test_near_duplicates_are_what_comparing_all_pairs_finds():
    rng = random.Random(5)
    documents = []
    for _ in range(60):
        words = ["".join(rng.choices("abcdef", k=5)) for _ in range(40)]
        documents.append(words)
        for n_changes in (1, 3, 8):
            changed = list(words)
            for place in rng.sample(range(40), n_changes):
                changed[place] = "changed" + rng.choice("xyz")
            documents.append(changed)
    rng.shuffle(documents)
    texts = [" ".join(words) for words in documents]

    def bigrams(text: str) -> set[tuple[str, str]]:
        words = text.split()
        return set(pairwise(words))

    expected, kept = [], []
    for text in texts:
        near = any(len(bigrams(text) & bigrams(o)) >= 0.8 * len(bigrams(text) | bigrams(o)) for o in kept)
        expected.append(near)
        if not near:
            kept.append(text)
    assert 20 < sum(expected) < len(texts) - 60
    near = NearDuplicates(0.8)
    found = [near.add(shingles(text), bands(shingles(text))) is not None for text in texts]
    assert found == expected


def test_layout_case_and_punctuation_do_not_tell_documents_apart():
    left, right = "def readFile(path):\n    return open(path)", "def read_file( path ) :  return open( path )"
    assert jaccard(shingles(left), shingles(right)) == 1.0
    assert jaccard(shingles(left), shingles("def write(x): print(x, y, z)")) < 0.2
    assert shingles("").size == shingles("word").size == 1
