"""Does it scale? `python -m src.benchmarks.scale drift_dir=<recorded drift>`: every rule on a million rows.

Vectors only, no model: the rows drift as `python -m src.benchmarks.refresh` recorded it under the rule
`full`, and the index, its rules, the ledger and the exact rank are those of a run. A rule that is done is not
run again.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.command import entry_point
from search_r3.cli.entry import Entry
from search_r3.cli.instantiate import instantiate
from search_r3.cli.last_resort import run_command
from search_r3.cli.overrides import refuse_unknown
from search_r3.cli.provenance import provenance
from search_r3.cli.run_log import log_written
from search_r3.errors import UsageError
from search_r3.files import write_json
from search_r3.folders import empty_part
from search_r3.progress import Progress
from search_r3.records import read_json_if_there

log = logging.getLogger(__name__)


def check(config: DictConfig, is_sweep: bool) -> None:
    """Refuses what cannot be replayed; see `Entry`.

    Raises:
        UsageError: With the reason.
    """
    if is_sweep:
        raise UsageError("src.benchmarks.scale runs every rule already; --multirun does not apply")
    for rule in config.rules:
        refuse_unknown(f"rules: {rule}", rule, config.rule)
    if not config.rules or config.n_steps < 1:
        raise UsageError("rules= needs an entry and n_steps= at least 1")
    if not (Path(config.drift_dir) / "facts.json").is_file():
        raise UsageError(
            f"drift_dir={config.drift_dir}: there is no recorded drift; `python -m src.benchmarks.refresh` "
            "records one under the rule full"
        )


def run(config: DictConfig) -> None:
    """Replays the rules that are not done, and writes what all of them cost."""
    from search_r3.benchmarks.drift import Recording, Replay
    from search_r3.benchmarks.report import print_agreement, print_seconds, write_picture

    folder = Path(config.output_dir)
    recording = Recording(config.drift_dir)
    offset = recording.neighbour_distance() if config.offset is None else config.offset
    replay = Replay(recording, config.n_documents, offset, config.seed)
    if config.n_steps >= len(recording.steps):
        raise ValueError(f"{config.drift_dir}: n_steps can be {len(recording.steps) - 1} at most")
    done = {rule: _done(config, rule, folder) for rule in config.rules}
    total = config.n_steps * sum(result is None for result in done.values())
    place = empty_part(folder / "replay")
    base_file = place / "base.npy"
    if total > 0:
        log.info("writing %d rows of width %d", replay.n_documents, recording.width)
        replay.write(base_file, recording.steps[0])
    with Progress(total, "replay", "steps", is_shown=total > 0) as progress:
        for rule in [rule for rule, result in done.items() if result is None]:
            done[rule] = _replay(config, rule, replay, base_file, progress)
    shutil.rmtree(place)
    rows = [done[rule]["row"] for rule in config.rules]
    seconds = {rule: done[rule]["seconds"] for rule in config.rules}
    setting = {
        "n_documents": replay.n_documents, "width": recording.width, "offset": offset,
        "n_recorded": recording.n_rows, "n_steps": config.n_steps,
        "rollouts_per_step": len(recording.queries(recording.steps[0]).vectors),
    }  # fmt: skip
    detail = {rule: {k: v for k, v in done[rule].items() if k not in ("row", "made_with")} for rule in done}
    origin = provenance(seed=config.seed)
    write_json(folder / "metrics.json", origin | {"setting": setting, "rows": rows, "detail": detail})
    print_agreement(rows, replay.n_documents)
    print_seconds(seconds, {rule: _memory(done[rule]["memory"]) for rule in config.rules})
    log_written(folder / "metrics.json")
    title = f"{replay.n_documents:,} rows of width {recording.width}, drift of {recording.n_rows:,} documents"
    log_written(write_picture(rows, seconds, folder / "metrics.png", title))


def _made_with(config: DictConfig, rule: str) -> dict:
    """What a result depends on."""
    names = ("drift_dir", "n_documents", "n_steps", "offset", "seed", "reward")
    plain = OmegaConf.to_container(config, resolve=True)
    facts = {name: plain[name] for name in names}
    return facts | {"rule": plain["rule"][rule], "backend": plain["backend"][_backend(config, rule)]}


def _backend(config: DictConfig, rule: str) -> str:
    return config.backends.get(rule, "flat")


def _done(config: DictConfig, rule: str, folder: Path) -> dict | None:
    """The result of an earlier call.

    Raises:
        ValueError: If it was made with other settings.
    """
    file = folder / f"{rule}.json"
    result = read_json_if_there(file)
    if result and result.get("made_with") != _made_with(config, rule):
        raise ValueError(f"{file} was made with other settings; remove it, or choose another output_dir=")
    return result or None


def _replay(config: DictConfig, rule: str, replay: object, base_file: Path, progress: Progress) -> dict:
    """Replays one rule and writes its result."""
    import numpy as np

    from search_r3.benchmarks.replay import PARTS, Task, replayed
    from search_r3.benchmarks.report import coverage, row_of, scheduled_audits

    folder = Path(config.output_dir)
    task = Task(
        replay=replay,
        base=np.load(base_file, mmap_mode="r"),
        make_index=instantiate(config.backend[_backend(config, rule)]),
        settings=instantiate(config.rule[rule]),
        reward=instantiate(config.reward),
        n_steps=config.n_steps,
        folder=base_file.parent / "store",
    )
    steps = []
    for line in replayed(task):
        steps.append(line)
        progress.update(values=lambda: rule)
    names = (*PARTS, "encode", "audit")
    mean = {part: sum(step.get(f"seconds/{part}", 0.0) for step in steps) / len(steps) for part in names}
    seconds = {part: mean[part] for part in PARTS}
    row = row_of(rule, steps, scheduled_audits(steps), sum(seconds.values()))
    stated, observed, interval = coverage(steps)
    if stated is not None:
        row |= {"stated_coverage": stated, "observed_coverage": observed}
    largest = {
        name.removeprefix("memory/"): max(step[name] for step in steps)
        for name in steps[0]
        if name.startswith("memory/")
    }
    result = {
        "made_with": _made_with(config, rule), "row": row, "seconds": seconds, "memory": largest,
        "look_up_seconds": mean["encode"], "audit_seconds_per_step": mean["audit"],
        "documents_by_step": [step["index/documents_encoded"] for step in steps],
        "n_audits": len(scheduled_audits(steps)), "coverage_interval": interval,
    }  # fmt: skip
    write_json(folder / f"{rule}.json", result)
    return result


def _memory(sizes: dict[str, float]) -> dict[str, str]:
    return {f"{name.replace('_', ' ')} MiB": f"{size / 2**20:,.0f}" for name, size in sizes.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` is what follows its name, else the process's own."""
    return entry_point(Entry("bench_scale", run, check, module="src.benchmarks.scale"), argv)


if __name__ == "__main__":
    run_command(main)
