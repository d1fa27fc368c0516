"""Where the public collections are on the Hugging Face hub: repository and pinned revision.

BEIR's are those that mteb 2.26.0 evaluates (`mteb/tasks/retrieval/eng/`), whose numbers of queries and
documents in its `descriptive_stats/` are those of the BEIR paper for every one of them. BRIGHT's are its
authors' own, at the revision of mteb's `BrightRetrieval`.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Snapshot:
    """A data set of the hub at one commit.

    Attributes:
        repository: its name.
        revision: the commit.
        judgements: name and commit of another data set that has the judgements, as `BeIR/<name>-qrels`; None
            where they are in the same one.
    """

    repository: str
    revision: str
    judgements: tuple[str, str] | None = None


BEIR: Mapping[str, Snapshot] = {
    name: Snapshot(f"mteb/{repository}", revision)
    for name, repository, revision in (
        ("msmarco", "msmarco", "c5a29a104738b98a9e76336939199e264163d4a0"),
        ("trec-covid", "trec-covid", "bb9466bac8153a0349341eb1b22e06409e78ef4e"),
        ("nfcorpus", "nfcorpus", "ec0fa4fe99da2ff19ca1214b7966684033a58814"),
        ("nq", "nq", "b774495ed302d8c44a3a7ea25c90dbce03968f31"),
        ("hotpotqa", "hotpotqa", "ab518f4d6fcca38d87c25209f94beba119d02014"),
        ("fiqa", "fiqa", "27a168819829fe9bcd655c2df245fb19452e8e06"),
        ("arguana", "arguana", "c22ab2a51041ffd869aaddef7af8d8215647e41a"),
        ("webis-touche2020", "touche2020", "a34f9a33db75fa0cbb21bb5cfc3dae8dc8bec93f"),
        (
            "cqadupstack/android",
            "CQADupstackAndroidRetrieval",
            "9be4c0e46342e8e3aff577a89b9a1ec9bc6b4af3",
        ),
        ("cqadupstack/english", "cqadupstack-english", "ad9991cb51e31e31e430383c75ffb2885547b5f0"),
        ("cqadupstack/gaming", "cqadupstack-gaming", "4885aa143210c98657558c04aaf3dc47cfb54340"),
        ("cqadupstack/gis", "cqadupstack-gis", "5003b3064772da1887988e05400cf3806fe491f2"),
        ("cqadupstack/mathematica", "cqadupstack-mathematica", "90fceea13679c63fe563ded68f3b6f06e50061de"),
        ("cqadupstack/physics", "cqadupstack-physics", "79531abbd1fb92d06c6d6315a0cbbbf5bb247ea4"),
        ("cqadupstack/programmers", "cqadupstack-programmers", "6184bc1440d2dbc7612be22b50686b8826d22b32"),
        ("cqadupstack/stats", "cqadupstack-stats", "65ac3a16b8e91f9cee4c9828cc7c335575432a2a"),
        ("cqadupstack/tex", "cqadupstack-tex", "46989137a86843e03a6195de44b09deda022eec7"),
        ("cqadupstack/unix", "cqadupstack-unix", "6c6430d3a6d36f8d2a829195bc5dc94d7e063e53"),
        ("cqadupstack/webmasters", "cqadupstack-webmasters", "160c094312a0e1facb97e55eeddb698c0abe3571"),
        ("cqadupstack/wordpress", "cqadupstack-wordpress", "4ffe81d471b1924886b33c7567bfb200e9eec5c4"),
        ("quora", "quora", "e4e08e0b7dbe3c8700f0daef558ff32256715259"),
        ("dbpedia-entity", "dbpedia", "c0f706b76e590d620bd6618b3ca8efdd34e2d659"),
        ("scidocs", "scidocs", "f8c2fcf00f625baaa80f62ec5bd9e1fff3b8ae88"),
        ("fever", "fever", "bea83ef9e8fb933d90a2f1d5515737465d613e12"),
        ("climate-fever", "climate-fever", "47f2ac6acb640fc46020b02a5b59fdda04d39380"),
        ("scifact", "scifact", "d56462d0e63a25450459c4f213e49ffdb866f7f9"),
    )
}

BRIGHT_SNAPSHOT = Snapshot("xlangai/BRIGHT", "a75a0eb483f6a5233a6efc2d63d71540a4443dfb")
BRIGHT_TASKS = (
    "biology", "earth_science", "economics", "psychology", "robotics", "stackoverflow", "sustainable_living",
    "leetcode", "pony", "aops", "theoremqa_questions", "theoremqa_theorems",
)  # fmt: skip
_WITH_LONG = (*BRIGHT_TASKS[:7], "pony")
BRIGHT: Mapping[str, Snapshot] = {
    **{f"bright/{task}": BRIGHT_SNAPSHOT for task in BRIGHT_TASKS},
    **{f"bright_long/{task}": BRIGHT_SNAPSHOT for task in _WITH_LONG},
}
"""`bright_long/` has whole web pages as documents, of which `bright/` has the passages."""

SOURCES: Mapping[str, Snapshot] = {**BEIR, **BRIGHT}
