"""One page of runs, sweeps and evaluations, and where it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from search_r3.cli.command_line import command_line
from search_r3.cli.page.evaluation_page import evaluation_parts
from search_r3.cli.page.markup import Markup, document, element, joined
from search_r3.cli.page.run_page import run_parts, stage_of, state_mark
from search_r3.cli.page.sweep_page import job_folders, sweep_parts
from search_r3.cli.provenance import commit
from search_r3.files import write_text


@dataclass(frozen=True)
class Evaluations:
    """Rows of evaluations, with what is known of each.

    Attributes:
        rows: with `folder` as seen from the working folder.
        scores: nDCG@10 by query id of each row; None where that is not known.
        differences: what `paired_differences` found.
        sources: command, commit and seed by file.
    """

    rows: Sequence[Mapping] = ()
    scores: Sequence[Mapping[str, float] | None] = ()
    differences: Sequence[Mapping] = ()
    sources: Mapping[str, Mapping] = field(default_factory=dict)


def write_page(
    file: Path, runs: Sequence[Path], sweeps: Sequence[Path], evaluations: Evaluations | None
) -> Path:
    """Writes the page of what is given.

    Args:
        file: is replaced whole.
        runs: folders of training runs.
        sweeps: folders of sweeps and searches.
        evaluations: None where there are none.

    Raises:
        RecordError: If a record is damaged.
        OSError: If the file cannot be written.
    """
    is_alone = len(runs) + len(sweeps) + (evaluations is not None) == 1
    level = 2 if is_alone else 3
    parts: list[tuple[str, Markup | None, Markup]] = []
    for folder in runs:
        parts.append((str(folder), state_mark(folder), run_parts(folder, level)))
    if len(runs) > 1 and len({stage_of(folder) for folder in runs}) == 1:
        parts.append(("The runs side by side", None, sweep_parts(runs, level)))
    for folder in sweeps:
        parts.append((str(folder), None, sweep_parts(job_folders(folder), level)))
    if evaluations is not None:
        inner = evaluation_parts(
            evaluations.rows, evaluations.scores, evaluations.differences, evaluations.sources, level
        )
        title = "Evaluation" if not is_alone else f"Evaluation {_named(evaluations.sources)}"
        parts.append((title, None, inner))
    title = _title(runs, sweeps, parts)
    write_text(file, document(title, _body(title, parts, is_alone)))
    return file


def _named(sources: Mapping[str, Mapping]) -> str:
    return ", ".join(str(Path(file).parent if file.endswith("metrics.json") else file) for file in sources)


def _title(runs: Sequence[Path], sweeps: Sequence[Path], parts: Sequence[tuple]) -> str:
    if len(parts) == 1:
        kind = "Run " if runs else "Sweep " if sweeps else ""
        return f"{kind}{parts[0][0]}"
    return ", ".join(dict.fromkeys(name for name, _, _ in parts if not name.startswith("The runs")))


def _body(title: str, parts: Sequence[tuple[str, Markup | None, Markup]], is_alone: bool) -> Markup:
    if is_alone:
        ((_, mark, inner),) = parts
        main = element("main", element("header", element("h1", title, mark)), inner)
    else:
        links = [
            element("li", element("a", name, href=f"#part{place}"))
            for place, (name, _, _) in enumerate(parts)
        ]
        header = element(
            "header",
            element("h1", "Search-R3 report"),
            element("nav", element("ul", *links), aria_label="parts"),
        )
        inner = [
            element("section", element("h2", name, mark, id=f"part{place}"), content)
            for place, (name, mark, content) in enumerate(parts)
        ]
        main = element("main", header, *inner)
    made = element("footer", "Made by ", element("code", command_line()), f" at commit {commit()}.")
    return joined(main, made)
