"""Kills, full disks, damage and second starters, by the hundred: which promise does one of them break?

    make faults [SEED=1] [N=20] [ONLY=kill,ranks,full,read-only,tmpdir,damage,starters,records] [JOBS=1]

Every attack has a name, as `kill/rl/7` or `damage/run/checkpoints/last.ckpt/flipped`, and draws what it does
by the seed and its name; `python -m tests.faults.run --seed 1 --attack kill/rl/7` makes one of them again,
and `--keep` leaves what it did in the folder that it names. The table counts by kind; `outputs/faults/` has
the log, a line for each attack, and metrics.json.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from search_r3.cli.provenance import provenance
from search_r3.files import write_json
from search_r3.progress import Progress
from tests.faults import damage, disks, kills, ranks, starters
from tests.faults.attack import KEPT, OUTCOMES, Attack, Verdict, Workshop, is_among

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "kill": kills,
    "ranks": ranks,
    "full": disks,
    "read-only": disks,
    "tmpdir": disks,
    "damage": damage,
    "starters": starters,
    "records": starters,
}


def planned(workshop: Workshop, n: int, only: Sequence[str]) -> list[Attack]:
    """The attacks of some kinds, `kill` or `kill/sft`."""
    modules = dict.fromkeys(KINDS[name.partition("/")[0]] for name in only)
    found = [attack for module in modules for attack in module.attacks(workshop, n, only)]
    return [attack for attack in found if is_among(attack.name, only)]


def named(workshop: Workshop, name: str, n: int = 10_000) -> Attack:
    """One attack by its name.

    Raises:
        SystemExit: If there is none.
    """
    if name.partition("/")[0] in KINDS:
        module = KINDS[name.partition("/")[0]]
        for attack in module.attacks(workshop, n, [name]):
            if attack.name == name:
                return attack
    raise SystemExit(f"error: there is no attack {name}")


def made(attack: Attack, seed: int) -> Verdict:
    """The verdict on an attack, which may fail itself, as where a run fails that nothing disturbs."""
    try:
        return attack.verdict(seed)
    except Exception as error:
        return Verdict("failed", f"{error!r}"[-1000:])


def table(rows: Sequence[dict]) -> str:
    """Counts by kind."""
    width = max(len(row["kind"]) for row in rows)
    head = ["tried", *OUTCOMES]
    lines = ["  ".join([" " * width, *head])]
    for row in rows:
        cells = [str(row[name]).rjust(len(name)) for name in head]
        lines.append("  ".join([row["kind"].ljust(width), *cells]))
    return "\n".join(lines)


def rows_of(results: Sequence[dict]) -> list[dict]:
    """A row for each kind, with the reasons why attacks were skipped, and one for all."""
    kinds = list(dict.fromkeys(result["kind"] for result in results))
    rows = []
    for kind in [*kinds, "all"]:
        own = [result for result in results if kind in (result["kind"], "all")]
        counts = Counter(result["outcome"] for result in own)
        skipped = sorted({result["told"] for result in own if result["outcome"] == "skipped"})
        row = {"kind": kind, "tried": len(own) - counts["skipped"]}
        row |= {outcome: counts[outcome] for outcome in OUTCOMES}
        rows.append(row | ({"why_skipped": skipped} if skipped and kind != "all" else {}))
    return rows


def main() -> int:
    """See the module. Ends with 1 where a promise is broken."""
    arguments = _arguments()
    # a killed process leaves its semaphores to the tracker, which warns at the end
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        workshop = Workshop(folder, arguments.keep)
        if arguments.attack:
            attacks = [named(workshop, name) for name in arguments.attack]
        else:
            attacks = planned(workshop, arguments.n, arguments.only)
        results = _results(attacks, arguments, output / "attacks.jsonl")
    finally:
        if arguments.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    rows = rows_of(results)
    print(table(rows))
    for result in results:
        if result["outcome"] not in KEPT:
            print(f"{result['outcome']}: {result['name']}: {result['told']}")
    if not arguments.attack:
        write_json(
            output / "metrics.json", provenance(seed=arguments.seed) | {"machine": _machine(), "rows": rows}
        )
        print(f"wrote {output / 'metrics.json'} and {output / 'attacks.jsonl'}")
    return int(any(result["outcome"] not in KEPT for result in results))


def _results(attacks: Sequence[Attack], arguments: argparse.Namespace, log: Path) -> list[dict]:
    """Makes the attacks and gives what came of each, in the order in which they end."""
    lock = threading.Lock()
    results: list[dict] = []

    def make(attack: Attack) -> None:
        started = time.monotonic()
        verdict = made(attack, arguments.seed)
        seconds = round(time.monotonic() - started, 1)
        facts = {"name": attack.name, "kind": attack.row, "seed": arguments.seed, "seconds": seconds}
        with lock:
            results.append(facts | {"outcome": verdict.outcome, "told": verdict.told})
            file.write(json.dumps(results[-1], ensure_ascii=False) + "\n")
            file.flush()
            broken = sum(result["outcome"] not in KEPT for result in results)
            bar.update(1, lambda: f"{broken} broken")

    with (
        log.open("w", encoding="utf-8") as file,
        Progress(len(attacks), "faults", "attacks") as bar,
        ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        list(pool.map(make, attacks))
    return results


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n", type=int, default=20, help="attacks of each kind on each subject")
    parser.add_argument("--only", type=_kinds, default=list(KINDS), help="as kill,full/rl")
    parser.add_argument("--attack", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="attacks that are made at one time")
    parser.add_argument("--keep", action="store_true", help="leave the folders of the attacks")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "faults")
    return parser.parse_args()


def _kinds(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name.partition("/")[0] not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(KINDS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
