"""Is it ahead? `python -m src.bench` compares this project with what its users would use instead.

Each row first holds both sides to the same result, then times them in alternation: sentence-transformers
for encoding and SFT, transformers and TRL for rollouts and GRPO, mteb for an evaluation, NumPy and FAISS for
exact ranks. `make bench` installs the peers into an environment of their own. One row: `rows=[encode]`. What
is finished is kept: a call that was interrupted goes on behind it, and the table has what earlier calls left.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.last_resort import run_command
from search_r3.cli.overrides import refuse_unknown
from search_r3.cli.provenance import provenance
from search_r3.cli.run_log import log_written
from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.progress import Progress

if TYPE_CHECKING:
    from search_r3.benchmarks.peers.cases import Case, Keeper

log = logging.getLogger(__name__)

NEEDS = {
    "encode": ("sentence_transformers",),
    "queries": ("sentence_transformers",),
    "sft": ("sentence_transformers",),
    "grpo": ("trl",),
    "evaluation": ("sentence_transformers", "mteb"),
    "memory": ("sentence_transformers", "trl"),
}
"""Packages that a row compares with, besides those of requirements.lock."""


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be compared; see `Entry`.

    Raises:
        UsageError: With the reason.
    """
    if is_sweep:
        raise UsageError("src.bench runs every case already; --multirun does not apply")
    for key, known in (("rows", _known_rows()), ("models", list(config.sizes))):
        for name in config[key]:
            refuse_unknown(f"{key}: {name}", name, known)
    for key in ("rows", "models", "threads", "busy"):
        given = list(config[key])
        if not given or len(set(given)) != len(given):
            raise UsageError(f"{key} must name at least one, and each once, got {given}")
    if config.precision not in ("fp32", "bf16"):
        raise UsageError(f"precision must be fp32 or bf16, got {config.precision}")
    needed = sorted({package for row in config.rows for package in NEEDS.get(row, ())})
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"{', '.join(missing)}: not installed here; `make bench` installs what is compared")


def _known_rows() -> list[str]:
    """Names that `rows=` takes."""
    from search_r3.benchmarks.peers.names import ROWS

    return list(ROWS)


def run(config: DictConfig) -> None:
    """Measures the cases that are not finished, and writes what they say, and those of earlier calls."""
    from search_r3.benchmarks.peers import table
    from search_r3.benchmarks.peers.cases import Case, Keeper, kept_cases, planned
    from search_r3.benchmarks.peers.machine import described

    folder, machine, origin = Path(config.output_dir), described(), provenance(seed=config.seed)
    plain = OmegaConf.to_container(config, resolve=True)
    rows, models, left_out = _possible(plain)
    cases = planned(rows, models, plain["threads"], plain["busy"])

    def settings_of(case: Case) -> dict:
        sizes = plain["sizes"][case.model or next(iter(plain["sizes"]))]
        scifact = Path(plain["beir_dir"] or ".") / "scifact"
        names = ("rounds", "max_seconds", "precision", "smollm2", "cache_dir", "seed", "refresh_keys")
        return {name: plain[name] for name in names} | {"sizes": sizes, "scifact": str(scifact)}

    def keeper_of(case: Case) -> Keeper:
        made_with = {"settings": settings_of(case), "machine": machine, "commit": origin["commit"]}
        return Keeper(folder / "cases", made_with)

    found, failed = _measured(cases, keeper_of, folder / "work")
    kept = kept_cases(folder / "cases")
    for case in kept:
        if case not in cases and (result := keeper_of(case).read(case, timed_as_long=False)) is not None:
            found[case] = result
    written = table.rows_of({case: found[case] for case in kept if case in found})
    facts = {"machine": machine, "left_out": left_out, "failed": failed, "rows": written}
    write_json(folder / "metrics.json", origin | facts)
    (folder / "table.md").write_text(table.markdown(written), encoding="utf-8")
    print(table.markdown(written))
    for each in (*left_out, *failed):
        print(f"not measured: {each}")
    table.picture(written, folder / "metrics.png")
    log_written(folder / "metrics.json", folder / "table.md", folder / "metrics.png")
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cases)} cases failed; the same command tries them again")


def _measured(
    cases: Sequence["Case"], keeper_of: Callable[["Case"], "Keeper"], work: Path
) -> tuple[dict["Case", dict], list[str]]:
    """What each case gave, now or in an earlier call, and why others failed."""
    from search_r3.benchmarks.peers.cases import CaseError, measured

    found, failed = {}, []
    with Progress(len(cases), "bench", "cases") as progress:
        for case in cases:
            keeper = keeper_of(case)
            result = keeper.read(case)
            if result is None:
                log.info("measures %s", case.name)
                try:
                    result = measured(case, keeper.made_with["settings"], work)
                    keeper.write(case, result)
                except CaseError as error:
                    log.error("%s", error)
                    failed.append(str(error))
            if result is not None:
                found[case] = result
            progress.update(values=lambda name=case.name: name)
    return found, failed


def _possible(config: dict) -> tuple[list[str], list[str], list[str]]:
    """Rows and models of which there is all that they need, and why others are left out."""
    from search_r3.benchmarks.peers.names import SMOLLM2_NAME

    rows, models, left_out = list(config["rows"]), list(config["models"]), []
    if SMOLLM2_NAME in models and not Path(config["smollm2"]).is_dir():
        models.remove(SMOLLM2_NAME)
        left_out.append(f"{SMOLLM2_NAME}: smollm2={config['smollm2']} is no folder; `make base` writes it")
    scifact = Path(config["beir_dir"] or ".") / "scifact"
    if "evaluation" in rows and not scifact.is_dir():
        rows.remove("evaluation")
        left_out.append(
            "evaluation: beir_dir= names no folder with scifact in it; make bench BEIR_DIR=<folder>"
        )
    return rows, models, left_out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    return entry_point(Entry("bench", run, check), argv)


if __name__ == "__main__":
    run_command(main)
