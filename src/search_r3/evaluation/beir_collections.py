"""The 15 public collections of BEIR: what they are called, their split, and how large they are.

Counts are those of table 1 of the paper (Thakur et al., arXiv:2104.08663) with the test split, and dev for
MS MARCO; each equals the number of queries and documents in the `descriptive_stats/Retrieval/` of mteb
2.26.0, and the rounded one of the table in BEIR's README. The 12 parts of CQADupStack add up to the 13,145
queries and 457,199 documents of the paper. Four more collections of BEIR are not public.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_r3.data.beir.layout import removes_self_match
from search_r3.data.types import Benchmark

ALL = "beir"
"""What `benchmarks=` calls all of them."""
SOURCE = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{}.zip"
CQADUPSTACK = "cqadupstack"


@dataclass(frozen=True)
class Collection:
    """One collection, or one part of CQADupStack.

    Attributes:
        name: of its folder in `beir_dir`, as BEIR's archive has it.
        n_queries: that `split` judges.
        n_docs: in the corpus.
        split: that results are reported on.
    """

    name: str
    n_queries: int
    n_docs: int
    split: str = "test"

    @property
    def remove_self_match(self) -> bool:
        """Whether a document with the query's id is taken out of its ranking, as mteb does."""
        return removes_self_match(self.name)

    @property
    def source(self) -> str:
        """Where its archive is."""
        return SOURCE.format(_whole(self.name))


COLLECTIONS: Sequence[Collection] = (
    Collection("msmarco", 6_980, 8_841_823, "dev"),
    Collection("trec-covid", 50, 171_332),
    Collection("nfcorpus", 323, 3_633),
    Collection("nq", 3_452, 2_681_468),
    Collection("hotpotqa", 7_405, 5_233_329),
    Collection("fiqa", 648, 57_638),
    Collection("arguana", 1_406, 8_674),
    Collection("webis-touche2020", 49, 382_545),
    Collection("cqadupstack/android", 699, 22_998),
    Collection("cqadupstack/english", 1_570, 40_221),
    Collection("cqadupstack/gaming", 1_595, 45_301),
    Collection("cqadupstack/gis", 885, 37_637),
    Collection("cqadupstack/mathematica", 804, 16_705),
    Collection("cqadupstack/physics", 1_039, 38_316),
    Collection("cqadupstack/programmers", 876, 32_176),
    Collection("cqadupstack/stats", 652, 42_269),
    Collection("cqadupstack/tex", 2_906, 68_184),
    Collection("cqadupstack/unix", 1_072, 47_382),
    Collection("cqadupstack/webmasters", 506, 17_405),
    Collection("cqadupstack/wordpress", 541, 48_605),
    Collection("quora", 10_000, 522_931),
    Collection("dbpedia-entity", 400, 4_635_922),
    Collection("scidocs", 1_000, 25_657),
    Collection("fever", 6_666, 5_416_568),
    Collection("climate-fever", 1_535, 5_416_593),
    Collection("scifact", 300, 5_183),
)


def official(name: str) -> Collection | None:
    """The collection of BEIR that a benchmark's name, or the end of it, is that of.

    >>> official("mine/scifact").n_queries
    300
    """
    plain = f"/{name.casefold()}"
    return next((each for each in COLLECTIONS if plain.endswith(f"/{each.name}")), None)


def present(beir_dir: Path) -> list[str]:
    """Names of the collections whose folders are there."""
    return [each.name for each in COLLECTIONS if (beir_dir / each.name / "qrels").is_dir()]


def _whole(name: str) -> str:
    """What a part belongs to: `cqadupstack` of `cqadupstack/gis`."""
    return name.partition("/")[0]


def absent_text(beir_dir: Path, of: Sequence[str] | None = None) -> str:
    """Which collections are missing, where their archives are, and where to unpack them; empty if none is.

    Args:
        beir_dir: where they are looked for.
        of: the names that are asked for; None for all.
    """
    there = set(present(beir_dir))
    begun = {_whole(name) for name in there}
    names = [each.name for each in COLLECTIONS if each.name not in there and (of is None or each.name in of)]
    absent = list(dict.fromkeys(name if _whole(name) in begun else _whole(name) for name in names))
    if not absent:
        return ""
    return (
        f"{', '.join(absent)}; get {SOURCE.format('<name>')} (of a part of CQADupStack: {CQADUPSTACK}.zip) "
        f"and unpack it in {beir_dir}, so that {beir_dir}/<name>/qrels is there"
    )


def cqadupstack_rows(rows: Sequence[Mapping]) -> list[dict]:
    """A row `cqadupstack` for each mode of a model that has one row of each of the twelve parts.

    Its metrics are the means of the parts', each weighing the same, as BEIR reports them; queries, documents
    and prices are those of all parts together. It has no interval, and no folder.
    """
    parts = [each.name for each in COLLECTIONS if _whole(each.name) == CQADUPSTACK]
    found: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if row["benchmark"] in parts:
            found.setdefault((row["model"], row["mode"]), []).append(row)
    return [
        _averaged(its)
        for its in found.values()
        if sorted(row["benchmark"] for row in its)
        == sorted(parts)  # of each part one, or it is not clear which
    ]


def _averaged(rows: Sequence[Mapping]) -> dict:
    n_queries = sum(row["n_queries"] for row in rows)
    shares = ("seconds_per_query", "tokens_per_query", "reasoned_share")
    return {
        **{key: rows[0].get(key) for key in ("model", "mode", "weights_sha256")},
        "benchmark": CQADUPSTACK,
        "n_queries": n_queries,
        "n_docs": sum(row["n_docs"] for row in rows),
        "metrics": {
            name: sum(row["metrics"][name] for row in rows) / len(rows) for name in rows[0]["metrics"]
        },
        "missing_embed_token": sum(row["missing_embed_token"] for row in rows),
        **{
            name: sum(row[name] * row["n_queries"] for row in rows) / n_queries
            for name in shares
            if all(name in row for row in rows)
        },
    }


def difference_text(benchmark: Benchmark, split: str) -> str:
    """How a collection that is called as one of BEIR's differs from it in its counts; empty if it does not.

    Args:
        benchmark: as it was read, with all its queries.
        split: of its judgements; another one than BEIR's is not compared.
    """
    known = official(benchmark.name)
    if known is None or split != known.split:
        return ""
    found = len(benchmark.queries), len(benchmark.corpus)
    if found == (known.n_queries, known.n_docs):
        return ""
    return (
        f"{benchmark.name}: has {found[0]} queries and {found[1]} documents, BEIR's {known.name} has "
        f"{known.n_queries} and {known.n_docs}; its numbers are not those of the published collection"
    )
