"""Search in whatever faiss makes of a factory string, in codes of a few bits a number: rows too many to copy.

The codes only say which documents are fetched. A few times as many as asked for are, and the rows themselves
say which of them are best and with what score, so that a score is that of every other backend. What is lost
is a document that its code hides, or that lies in a list which is not probed.

A code takes the place of the one before, in its array or by moving to another list. What does not follow the
rows is what training found: centroids, ranges, codebooks. So they are trained anew once as many rows have
changed as there are, or a share of that.
"""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from search_r3.index.backends.base import changed_rows, exact_scores
from search_r3.index.backends.faiss_factory import Parts, made, parts_of, refusal, said, trained
from search_r3.index.backends.flat import SLACK, TIE
from search_r3.index.backends.library import add_to_lists, faiss, make_room
from search_r3.index.rows.cache import StoreError
from search_r3.index.rows.checks import checked_queries, finite_chunks, finite_rows
from search_r3.index.rows.saved import load_saved, save_whole

CHUNK = 8192
"""Rows encoded at once."""

TRAINING_ROWS = 256
"""For each centroid that is trained; faiss itself uses no more of them."""

log = logging.getLogger(__name__)


class FaissIndex:
    """Approximate search in an index that `faiss.index_factory` knows and whose rows can be replaced.

    Args:
        embeddings: `[N, D]` fp32, unit norm; read again whenever a row changes.
        saved: a folder that `save` wrote: what was trained is taken from there.
        factory: as faiss reads it, such as "IVF4096,SQ8".
        n_probe: lists searched per query, where the index has lists; more find more.
        n_rescored: documents fetched per document asked for, and scored by the rows themselves.
        train_rows: rows drawn at random to train on, where the index has to be trained; at least 39 for each
            list are needed for lists that are worth it.
        retrain_above: changed rows since the last training, as a share of all, above which the index is
            trained anew; a row that changed twice counts twice. What needs no training, such as Flat and
            SQfp16, never is.
        seed: of the training.

    Raises:
        StoreError: If the saved folder does not fit.
        ValueError: If the string does not serve, see `faiss_factory.made`, or a number is out of range.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        saved: str | Path | None = None,
        factory: str = "SQ8",
        n_probe: int = 32,
        n_rescored: int = 4,
        train_rows: int = 262_144,
        retrain_above: float = 1.0,
        seed: int = 0,
    ) -> None:
        if min(n_probe, n_rescored, train_rows) < 1 or not retrain_above > 0:
            raise ValueError(
                "n_probe, n_rescored and train_rows must be at least 1 and retrain_above above 0, got "
                f"{n_probe}, {n_rescored}, {train_rows} and {retrain_above}"
            )
        self.embeddings, self.factory = embeddings, factory
        self.n_probe, self.n_rescored = n_probe, n_rescored
        self.train_rows, self.retrain_above, self.seed = train_rows, retrain_above, seed
        self.n_trainings = 0
        self._n_changed = 0  # since the last training
        self._learns = not made(factory, embeddings.shape[1]).whole.is_trained
        if saved is None:
            self.check(*embeddings.shape, factory, train_rows)
            self.retrain()
        else:
            self._load(saved)

    @classmethod
    def check(cls, n_rows: int, width: int, factory: str, train_rows: int = 262_144, **_: object) -> None:
        """Refuses what would fail once there are rows, see `check_settings`.

        Raises:
            ValueError: If the string does not serve, or asks for more training rows than there are.
        """
        needed, instead = made(factory, width).needs
        higher = f"take a higher one, or {instead.removeprefix('take ')}"
        for name, number, remedy in (
            ("a process has", n_rows, instead),
            ("index.train_rows is", train_rows, higher),
        ):
            if number < needed:
                raise refusal(factory, f"training needs {needed} rows, and {name} {number}", remedy)

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def bytes_per_row(self) -> int:
        """Memory of one row in the index; what was trained, and the rows themselves, come on top."""
        return self._parts.bytes_per_row

    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best documents of every query, as `Index.search` says.

        A query whose probed lists hold fewer than `k` documents is searched in all lists. Where the codes of
        what is kept tie with those of what was not fetched, all that tie are fetched, and the rows decide.

        Raises:
            ValueError: If widths differ, `k` is not positive, or a query is not finite.
        """
        vectors = checked_queries(queries, self.embeddings.shape[1], k)
        k = min(k, len(self))
        n_fetched = min(k * self.n_rescored + SLACK, len(self))
        asked = self._turned(vectors)
        products, candidates = self._fetched(asked, n_fetched, self.n_probe)
        is_short = (candidates >= 0).sum(1) < k
        if is_short.any():
            products[is_short], candidates[is_short] = self._fetched(asked[is_short], n_fetched, None)
        scores, rows, lowest = self._best(vectors, products, candidates, k)
        if n_fetched < len(self):  # else there is nothing beyond what was fetched
            is_full = candidates[:, -1] >= 0
            for number in np.flatnonzero(is_full & (lowest - products[:, -1] <= TIE)):
                n_probe = None if is_short[number] else self.n_probe
                limit = float(products[number, -1]) - TIE
                tied = self._above(asked[[number]], limit, n_probe)
                one = [number]
                scores[one], rows[one], _ = self._best(vectors[one], *(each[None] for each in tied), k)
        return scores, rows

    def update(self, rows: ArrayLike) -> None:
        """Replaces the codes of changed rows; may train anew.

        Raises:
            ValueError: If a row is unknown, or its vector is not finite.
        """
        changed = changed_rows(rows, len(self))
        self._n_changed += len(changed)
        if self._learns and self._n_changed > self.retrain_above * len(self):
            self.retrain()
            log.info(
                "faiss: %s is trained anew (training %d), since as many rows have changed as "
                "index.retrain_above says", self.factory, self.n_trainings,
            )  # fmt: skip
            return
        for part, vectors in finite_chunks(self.embeddings, changed, CHUNK):
            self._replace(part, vectors)

    def retrain(self) -> None:
        """Trains on a sample of the rows as they are, and encodes every row."""
        fewest, _ = made(self.factory, self.embeddings.shape[1]).needs
        n = min(len(self), self.train_rows, TRAINING_ROWS * max(fewest, TRAINING_ROWS))
        rng = np.random.default_rng((self.seed, self.n_trainings))
        sampled = np.sort(rng.choice(len(self), n, replace=False, shuffle=False))
        self._fill(trained(self.factory, finite_rows(self.embeddings, sampled), self.seed))
        self.n_trainings, self._n_changed = self.n_trainings + 1, 0

    def save(self, folder: str | Path) -> None:
        """Writes what was trained; the codes follow from it and from the rows."""
        counts = np.array([self.n_trainings, self._n_changed])
        save_whole(folder, {"trained": self._empty, "counts": counts}, self._facts())

    def _load(self, saved: str | Path) -> None:
        arrays = load_saved(saved, self._facts())
        self.n_trainings, self._n_changed = arrays["counts"].tolist()
        self._empty = arrays["trained"]
        try:
            parts = self._parts_made_anew()
        except RuntimeError as error:
            raise StoreError(f"{saved}: no saved index can be read there ({said(error)})") from error
        self._fill(parts)

    def _parts_made_anew(self) -> Parts:
        """An index without a row, as it was trained."""
        return parts_of(faiss.deserialize_index(self._empty), self.factory)

    def _facts(self) -> dict[str, int | str]:
        n_rows, width = self.embeddings.shape
        return {
            "backend": "faiss", "n_rows": n_rows, "width": width, "factory": self.factory, "seed": self.seed
        }  # fmt: skip

    def _fill(self, parts: Parts) -> None:
        """Encodes every row into an empty index."""
        self._parts, core = parts, parts.core
        self._empty = faiss.serialize_index(parts.whole)
        if parts.has_lists:
            self._fill_lists()
            return
        core.codes.resize(len(self) * core.code_size)  # at once: one that grows takes twice the memory
        core.ntotal = len(self)
        for part, vectors in finite_chunks(self.embeddings, np.arange(len(self)), CHUNK):
            self._replace(part, vectors)

    def _fill_lists(self) -> None:
        """Encodes every row into its list."""
        core, rows = self._parts.core, np.arange(len(self))
        lists = np.concatenate(
            [
                core.quantizer.search(self._turned(vectors), 1)[1][:, 0]
                for _, vectors in finite_chunks(self.embeddings, rows, CHUNK)
            ]
        )
        make_room(core, lists)
        core.set_direct_map_type(faiss.DirectMap.Array)
        for part, vectors in finite_chunks(self.embeddings, rows, CHUNK):
            add_to_lists(core, self._turned(vectors), lists[part])

    def _replace(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Puts vectors `[n, D]` in the place of rows `[n]` that the index has."""
        core, turned = self._parts.core, self._turned(vectors)
        if self._parts.has_lists:
            core.update_vectors(rows, turned)
            return
        codes = faiss.rev_swig_ptr(core.codes.data(), core.codes.size()).reshape(len(self), core.code_size)
        codes[rows] = core.sa_encode(turned)

    def _turned(self, vectors: np.ndarray) -> np.ndarray:
        for transform in self._parts.chain:
            vectors = transform.apply(vectors)
        return vectors

    def _probe(self, n_probe: int | None) -> None:
        """Searches that many lists from now on; all of them where None."""
        if self._parts.has_lists:
            n_lists = self._parts.core.nlist
            self._parts.core.nprobe = min(n_probe or n_lists, n_lists)

    def _fetched(self, asked: np.ndarray, n: int, n_probe: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Products of codes `[Q, n]` fp32 and rows, best first; row -1 where the probed lists hold fewer."""
        self._probe(n_probe)
        return self._parts.core.search(asked, n)

    def _above(self, asked: np.ndarray, limit: float, n_probe: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Products and rows `[n]` of what the probed lists hold above a limit, for a query `[1, D]`."""
        self._probe(n_probe)
        return self._parts.core.range_search(asked, limit)[1:]

    def _best(
        self, queries: np.ndarray, products: np.ndarray, candidates: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores and rows `[Q, k]` by the rows themselves, ties in row order, and `[Q]` their lowest product.

        Places of `candidates` `[Q, C]` without a row, -1, come last; at least `k` have one.
        """
        is_row = candidates >= 0
        scores = exact_scores(self.embeddings, queries, np.where(is_row, candidates, 0))
        scores = np.where(is_row, scores, -np.inf)
        order = np.lexsort((candidates, -scores), axis=1)[:, :k]
        kept = (np.take_along_axis(values, order, 1) for values in (scores, candidates, products))
        scores, rows, products = kept
        return scores, rows, products.min(1)
