"""The refresh of a step against a full re-encode of the corpus, the model's work included.

Both are runs of `python -m src.benchmarks.refresh`, the same model, seed, queries and documents: one under
the rule `certified`, which encodes what can change a reward, and one under `full`, which encodes everything.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from search_r3.benchmarks.report import logged_steps, scheduled_audits
from search_r3.benchmarks.timing import spread
from search_r3.shipped import ROOT

MODEL = ROOT / "experiments" / "nano_demo" / "model"
RULES = ("certified", "full")
IDENTICAL = 0.99
"""Share of the audited rollouts that must earn what they earn on a corpus encoded anew."""


def refresh(settings: Mapping, work: Path) -> dict:
    """Seconds of a step's refresh under both rules, and the share of identical rewards.

    Raises:
        ValueError: If a run failed, or rewards differ more than they may.
    """
    sizes = settings["sizes"]
    n_steps = sizes["refresh_steps"]
    full = json.dumps([f"stage.trainer.max_steps={min(4, n_steps)}", "refresh.audit_every_n_steps=0"])
    command = [
        sys.executable, "-m", "search_r3.benchmarks.refresh", "rules=[certified,full]",
        f"refresh.audit_every_n_steps={n_steps - 1}", f"settings.full={full}",
        f"model.path={MODEL}", f"output_dir={work}", f"seed={settings['seed']}",
        f"data.cache_dir={settings['cache_dir']}", f"stage.trainer.max_steps={n_steps}",
        f"stage.datamodule.max_documents={sizes['refresh_documents']}",
        "stage.datamodule.validation_queries=10", *settings["refresh_keys"],
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"the runs failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    steps = {rule: logged_steps(work / rule)[0] for rule in RULES}
    return compared(steps["certified"], steps["full"])


def compared(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> dict:
    """The row of two runs' logged steps, the first of each left out.

    The ratio is that of the medians, its spread that of the slowest and the fastest step of ours.

    Raises:
        ValueError: If rewards differ more than they may.
    """
    audits = scheduled_audits(ours)
    identical = statistics.mean(step["index/audit/identical_rewards"] for step in audits)
    if identical < IDENTICAL:
        raise ValueError(f"not compared: {identical:.3f} of the rewards are identical, below {IDENTICAL}")
    seconds = {
        side: [step["seconds/refresh"] for step in steps[1:]] for side, steps in (("o", ours), ("p", theirs))
    }
    full = statistics.median(seconds["p"])
    ratios = spread([full / each for each in seconds["o"]])
    return {
        "unit": "seconds of a step's refresh",
        "peer_name": "re-encode of all documents at every step",
        "ours": spread(seconds["o"]),
        "peer": spread(seconds["p"]),
        "ratio": ratios["median"],
        "spread": [ratios["lowest"], ratios["highest"]],
        "rounds": len(seconds["o"]),
        "equal": [
            {"what": "rewards, share that differs", "difference": 1 - identical, "limit": 1 - IDENTICAL}
        ],
        "documents_per_step": spread([step["index/documents_encoded"] for step in ours[1:]]),
    }
