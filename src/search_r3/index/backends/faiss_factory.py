"""From a factory string of faiss to an index whose rows can be replaced one by one, or to why there is none.

Rows can be replaced where each is a code of its own: in one array, where the new code takes the place of the
old one, or in inverted lists, from which it is taken and put into the list it now belongs to. Graphs lead
from row to row, packed codes are interleaved with those of other rows, and an index that refines another one
holds a second copy: these are refused.
"""

import re
from dataclasses import dataclass

import numpy as np

from search_r3.index.backends.library import faiss

WHICH_WORK = (
    "take Flat, SQfp16, SQ8, SQ4, PQ<n>, RQ<n>x<bits> or RaBitQ, or one of them behind IVF<lists>, as in "
    "IVF4096,SQ8; PCA<d>, OPQ<n>, RR<d> or L2norm may come first"
)
ARRAYS = (
    "IndexFlat", "IndexFlatIP", "IndexScalarQuantizer", "IndexPQ", "IndexResidualQuantizer",
    "IndexProductResidualQuantizer", "IndexRaBitQ",
)  # fmt: skip
"""Classes of faiss that hold one code after the other."""
LISTS = (
    "IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFResidualQuantizer",
    "IndexIVFProductResidualQuantizer", "IndexIVFRaBitQ",
)  # fmt: skip
"""Classes of faiss that hold codes in inverted lists, and know of every row where it is."""
REASONS = {
    "HNSW": "a graph leads from row to row, so that no row can be replaced",
    "NSG": "a graph leads from row to row, so that no row can be replaced",
    "NNDescent": "a graph leads from row to row, so that no row can be replaced",
    "FastScan": "its codes are packed in blocks of many rows, of which none can be replaced",
    "Refine": "it holds a second index to score again, which the rows do here; leave that part out",
    "Dedup": "equal rows share one place, of which none can be replaced",
    "LocalSearch": "a row has another code each time that it is encoded",
}
"""Why an index is refused, by a part of the name of its class."""
MOST_LISTS = 1 << 24
MOST_BITS = 16
OPQ_BITS = 8
"""Of the codes that OPQ learns its rotation with, whatever the codes of the index."""


@dataclass(frozen=True)
class Parts:
    """An index as the factory made it.

    Attributes:
        whole: what is written to disk; it owns the others.
        chain: transforms that a vector goes through first.
        core: holds the codes.
        has_lists: whether the core holds them in inverted lists.
    """

    whole: object
    chain: tuple
    core: object
    has_lists: bool

    @property
    def needs(self) -> tuple[int, str]:
        """Rows without which it cannot be trained, and what would need fewer."""
        needed = [(self.core.nlist if self.has_lists else 1, "take fewer lists")]
        if hasattr(self.core, "pq"):
            needed.append((1 << self.core.pq.nbits, "take fewer bits of PQ, as in PQ8x4"))
        if any(isinstance(transform, faiss.OPQMatrix) for transform in self.chain):
            needed.append((1 << OPQ_BITS, "leave OPQ out, which learns codes of its own"))
        return max(needed, key=lambda each: each[0])

    @property
    def bytes_per_row(self) -> int:
        """Of codes; in lists also the number of the row, and of the row its place."""
        return self.core.code_size + 16 * self.has_lists


def made(factory: object, width: int) -> Parts:
    """An empty index of inner products that can be updated in place.

    Args:
        factory: as `faiss.index_factory` reads it; a leading `IDMap,` says nothing here, where rows are their
            own numbers.
        width: of the rows.

    Raises:
        ValueError: In one line, if faiss does not know the string, it does not fit the width, or a row of
            such an index cannot be replaced.
    """
    if not isinstance(factory, str) or not factory.strip():
        raise refusal(factory, "it must be a text that faiss reads", WHICH_WORK)
    # Beyond these faiss takes gigabytes before it has seen a row.
    for pattern, most in ((r"(?:IVF|IMI\d+x)(\d+)", MOST_LISTS), (r"[PR]Q\d+(?:x\d+)?x(\d+)", MOST_BITS)):
        if any(int(number) > most for number in re.findall(pattern, factory)):
            raise refusal(factory, f"a number in it is above {most}", "take a lower one")
    try:
        whole = faiss.index_factory(width, re.sub(r"^IDMap2?,", "", factory), faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        why = f"faiss makes no index of inner products of it at width {width} ({said(error)})"
        raise refusal(factory, why, WHICH_WORK) from None
    return parts_of(whole, factory)


def parts_of(whole: object, factory: str) -> Parts:
    """The parts of an index of faiss.

    Raises:
        ValueError: As `made` does.
    """
    core, chain = faiss.downcast_index(whole), []
    while isinstance(core, faiss.IndexPreTransform):
        chain += [faiss.downcast_VectorTransform(core.chain.at(place)) for place in range(core.chain.size())]
        core = faiss.downcast_index(core.index)
    name = type(core).__name__
    if name not in ARRAYS and name not in LISTS:
        why = next((why for part, why in REASONS.items() if part in name), "a row of it cannot be replaced")
        raise refusal(factory, f"{why} ({name})", WHICH_WORK)
    for linear in chain:
        if isinstance(linear, faiss.PCAMatrix) and linear.d_out > linear.d_in:
            why = f"PCA makes no {linear.d_out} numbers of {linear.d_in}"
            raise refusal(factory, why, f"take PCA{linear.d_in} or lower")
    if "ScalarQuantizer" in name and core.sq.qtype in (
        faiss.ScalarQuantizer.QT_8bit_direct,
        faiss.ScalarQuantizer.QT_8bit_direct_signed,
    ):
        raise refusal(factory, "it keeps whole numbers, and those of a unit vector are 0", WHICH_WORK)
    return Parts(whole, tuple(chain), core, name in LISTS)


def trained(factory: str, sample: np.ndarray, seed: int) -> Parts:
    """An empty index that has seen a sample of the rows.

    A PCA is left uncentred: an inner product is not one of centred vectors, and what a row loses by the mean
    would move it in the ranking.

    Args:
        factory: as above.
        sample: `[n, D]` fp32.
        seed: of the clusterings.

    Raises:
        ValueError: As `made` does, or if the sample is too small.
    """
    parts = made(factory, sample.shape[1])
    for settings in _clusterings(parts.core):
        settings.seed, settings.min_points_per_centroid = seed + 1, 1
    if hasattr(parts.core, "do_polysemous_training"):
        parts.core.do_polysemous_training = False  # it serves a filter that no search here asks for
    try:
        for transform in parts.chain:
            if isinstance(transform, faiss.OPQMatrix):
                codes = faiss.ProductQuantizer(transform.d_out, transform.M, OPQ_BITS)
                codes.cp.min_points_per_centroid = 1
                transform.pq = codes
            if not transform.is_trained:
                transform.train(sample)
            if isinstance(transform, faiss.OPQMatrix):
                transform.pq = None  # which is gone after this call
            if isinstance(transform, faiss.PCAMatrix):
                transform.have_bias = False
            sample = transform.apply(sample)
        if not parts.core.is_trained:
            parts.core.train(sample)
    except RuntimeError as error:
        why = f"{len(sample)} rows do not train it ({said(error)})"
        raise refusal(factory, why, "take a smaller one, or a higher index.train_rows") from None
    parts.whole.is_trained = True
    return parts


def refusal(factory: object, why: str, instead: str) -> ValueError:
    """The error of a string that does not serve."""
    return ValueError(f"index.factory={factory}: {why}; {instead}")


def said(error: Exception) -> str:
    """What an error of faiss says, in one line without its place in the source."""
    line = " ".join(str(error).split())
    return re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", line)[:160]


def _clusterings(core: object) -> list:
    """Settings of the k-means that train lists and codebooks."""
    return [holder.cp for holder in (core, getattr(core, "pq", None)) if hasattr(holder, "cp")]
