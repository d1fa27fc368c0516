"""One run: its folder is chosen, taken and recorded, and the job runs in it."""

import contextlib
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from search_r3.cli.command_line import resume_command
from search_r3.cli.compose import compose, last_value, plain_value, resolved_yaml
from search_r3.cli.config_source import ConfigSource
from search_r3.cli.entry import Composed, Entry, Run
from search_r3.cli.overrides import literal
from search_r3.cli.provenance import provenance
from search_r3.cli.ranks import is_first, own_rank
from search_r3.cli.resume import (
    UNCOMPARED,
    changes_since,
    differences,
    earlier_sha256,
    refuse_changes,
    refuse_damaged,
    refuse_fewer_steps,
    refuse_pickles,
    resumed,
    text_sha256,
)
from search_r3.cli.run_folder import Interrupted, new_folder, recorded
from search_r3.cli.run_log import logged
from search_r3.cli.run_status import state_of, taken
from search_r3.cli.trust import checked_trust, stored_config
from search_r3.cli.without_effect import without_effect
from search_r3.errors import UsageError
from search_r3.files import json_text, keep_earlier, removal, remove_parts, write_text
from search_r3.folders import make_folder

log = logging.getLogger(__name__)
RUN_FOLDER = "SEARCH_R3_RUN_FOLDER"
RUN_RESUMES = "SEARCH_R3_RUN_RESUMES"
HANDED_DOWN = (RUN_FOLDER, RUN_RESUMES)
"""Environment variables for the other ranks, which run the same command line: the run folder, and "1" where
rank 0 goes on with the run in it."""


def run_one(entry: Entry, source: ConfigSource, overrides: Sequence[str]) -> int:
    resume = last_value(source.parse(overrides), "resume") if entry.is_resumable else None
    with contextlib.ExitStack() as stack:
        if resume is None:
            composed = compose(entry.config_name, overrides, source)
            entry.check(composed.config, False)
            if not entry.is_recorded:
                entry.run(composed.config)
                return 0
            folder = _chosen_folder(entry, composed.config, stack)
        else:
            folder = Path(resume)
            _take(folder, stack, "config.yaml")
            composed = resumed(source, overrides, folder, entry.reached)
            entry.check(composed.config, False)
        if folder is not None:
            execute(entry.config_name, entry.run, composed, folder)
    return 0


def _take(folder: Path, stack: contextlib.ExitStack, where: str = ".") -> None:
    """Keeps other processes out of a folder that holds `where` until the stack ends; the first rank does."""
    if is_first() and (folder / where).exists():
        stack.enter_context(taken(folder))


def _chosen_folder(entry: Entry, config: DictConfig, stack: contextlib.ExitStack) -> Path | None:
    """The run folder, made or checked; None where the run in it is finished and nothing is left to do.

    One that the user named is taken until the stack ends, before anything of it is believed.
    """
    handed_down = os.environ.get(RUN_FOLDER)
    if handed_down:
        if os.environ.get(RUN_RESUMES):
            config.resume = literal(handed_down)
        return Path(handed_down)
    if config.get("output_dir") is None:
        if entry.folder is not None:
            return entry.folder(config)
        if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
            raise UsageError(
                "under an external launcher give output_dir=, so that all ranks share one folder"
            )
        return new_folder(str(OmegaConf.select(config, "stage.name") or entry.config_name))
    folder = make_folder(Path(config.output_dir))
    _take(folder, stack)
    if not entry.is_resumable or not (folder / "status.json").is_file():
        return folder
    return reused_folder(entry, config, folder)


def reused_folder(entry: Entry, config: DictConfig, folder: Path) -> Path | None:
    """The folder of a run that this command goes on with; None where nothing is left to do, which is said.

    Args:
        entry: what the command is.
        config: of the command, with `if_exists`; its `resume` is set.
        folder: that holds a run.

    Raises:
        UsageError: If the run in there may not go on, or not with this configuration.
    """
    state = state_of(folder)
    if config.if_exists == "resume":
        refuse_pickles(folder, config, checked_trust(plain_value(config.get("trust"))))
    if not is_first():
        if _is_done(folder, config):
            return None  # as rank 0, for which the others would wait
        config.resume = literal(str(folder))  # whatever rank 0 found
        return folder
    if config.if_exists == "refuse":
        raise UsageError(f"output_dir={folder}: a run is in there ({state}). Go on with it: if_exists=resume")
    if not (folder / "config.yaml").is_file():
        raise UsageError(
            f"output_dir={folder}: the config.yaml of the run in there is missing, so it cannot go on; "
            f"to start anew: {removal(folder)}"
        )
    stored = stored_config(folder / "config.yaml")
    refuse_damaged(folder)
    refuse_changes(folder, stored, config)  # so whatever it has called is named by the user's own command
    if _is_done(folder, config):
        print(f"{folder} is finished; to retrain: {removal(folder)}")
        return None
    refuse_fewer_steps(folder, stored, config, entry.reached)
    config.resume = literal(str(folder))
    return folder


def _is_done(folder: Path, config: DictConfig) -> bool:
    """Whether the run in a folder is finished, and this command asks for no more than it did."""
    if state_of(folder) != "finished" or not (folder / "config.yaml").is_file():
        return False
    return not differences(stored_config(folder / "config.yaml"), config, ignored=UNCOMPARED)


def execute(name: str, run: Run, composed: Composed, folder: Path) -> None:
    """Runs a job in its folder; rank 0 keeps the record, the other ranks only a log.

    Args:
        name: of the command; the log is `<name>.log`.
        run: the job; gets the configuration with `output_dir` set to the folder.
        composed: what is run.
        folder: made where it does not exist.

    Raises:
        UsageError: If the folder cannot be made, or another process works in it.
        Interrupted: If the job was stopped.
        Failed: If the job failed, which is recorded and told by then.
    """
    config = composed.config
    make_folder(folder)
    config.output_dir = literal(str(folder))
    if not is_first():
        with logged(folder / f"{name}.rank{own_rank()}.log", is_main=False):
            _run_in_rank(run, config)
        return
    with taken(folder):
        remove_parts(folder)
        _execute_first_rank(name, run, composed, folder)


def _execute_first_rank(name: str, run: Run, composed: Composed, folder: Path) -> None:
    config = composed.config
    origin = provenance(composed.command, seed=config.get("seed"))
    origin |= {"choices": composed.choices, "overrides": composed.overrides}
    changes = changes_since(folder, config)
    settings = resolved_yaml(config)
    origin["config_sha256"] = [text_sha256(settings), *earlier_sha256(folder)]
    records = {"provenance.json": json_text(origin), "config.yaml": settings}  # in this order
    is_origin_lost = config.get("resume") and not (folder / "provenance.json").exists()
    kept = [keep_earlier(folder / name, content) for name, content in records.items()]
    if config.get("resume"):
        kept.append(keep_earlier(folder / "metrics.json"))  # the results of fewer steps
    for file, content in records.items():
        write_text(folder / file, content)
    with (
        _handed_down(folder, bool(config.get("resume"))),
        recorded(folder, f"{name}.log", go_on(name, composed, folder)),
    ):
        if is_origin_lost:
            log.warning(
                "%s: provenance.json of the call before is missing, so search_r3.json of the model will not "
                "say which options its groups had",
                folder,
            )
        for line in without_effect(config, composed.overrides):
            log.info("%s", line)
        for change in changes:
            log.info("changed since the earlier call: %s", change)
        for path in filter(None, kept):
            log.info("kept %s", path)
        run(config)


def go_on(name: str, composed: Composed, folder: Path) -> str:
    """The command that goes on with an interrupted job.

    A training run goes on from its folder; all else, and a search, takes up what it finds where it wrote.
    """
    if name == "train":
        trust = [each for each in composed.overrides if each.lstrip("+").startswith("trust=")]
        return resume_command(folder, trust)
    names_folder = any(each.lstrip("+").startswith(("output_dir=", "study=")) for each in composed.overrides)
    where = "" if names_folder or name == "tune" else " " + shlex.quote(f"output_dir={folder}")
    return f"{composed.command}{where}"


def _run_in_rank(run: Run, config: DictConfig) -> None:
    """Runs the job where another rank keeps the record; a failure's traceback goes to this rank's log."""
    try:
        run(config)
    except (KeyboardInterrupt, SystemExit) as error:
        raise Interrupted(config.output_dir) from error  # told by rank 0
    except Exception:
        log.exception("this rank failed")
        raise


@contextlib.contextmanager
def _handed_down(folder: Path, resumes: bool) -> Iterator[None]:
    """Names the run to the ranks started within; a search runs its trials inside a run of its own."""
    outer = {name: os.environ.get(name) for name in HANDED_DOWN}
    os.environ |= {RUN_FOLDER: str(folder.resolve()), RUN_RESUMES: "1" if resumes else ""}
    try:
        yield
    finally:
        for name, value in outer.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
