"""Invented names: syllables, with an ending that tells the kinds apart."""

from itertools import count, islice
from random import Random

from search_r3.data.hops.words import ENDINGS

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
_SPARSENESS = 8  # so many times more names could be formed than are used, so that few differ by one letter


def new_names(kind: str, n: int, taken: frozenset[str], random: Random) -> tuple[str, ...]:
    """Distinct names of syllables such as "Kanobu"; of as few as leave most of the possible ones unused."""
    endings, n_syllables = ENDINGS[kind], len(CONSONANTS) * len(VOWELS)
    is_open = endings[0] in VOWELS  # then the last syllable's vowel is the ending
    for length in count(2):
        size = n_syllables**length * len(endings) // (len(VOWELS) if is_open else 1)
        if size >= _SPARSENESS * (n + len(taken)):
            break
    numbers = random.sample(range(size), n + len(taken))
    found = (_name(number, length, endings, is_open) for number in numbers)
    return tuple(islice((name for name in found if name.lower() not in taken), n))


def _name(number: int, length: int, endings: str, is_open: bool) -> str:
    """The name of a number: its digits are syllables, its lowest digits the ending."""
    number, last = divmod(number, len(endings))
    letters = endings[last]
    if is_open:
        number, last = divmod(number, len(CONSONANTS))
        letters = CONSONANTS[last] + letters
        length -= 1
    for _ in range(length):
        number, vowel = divmod(number, len(VOWELS))
        number, consonant = divmod(number, len(CONSONANTS))
        letters = CONSONANTS[consonant] + VOWELS[vowel] + letters
    return letters.capitalize()
