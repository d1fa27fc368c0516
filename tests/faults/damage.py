"""Every file of every kind of folder damaged in every way, and then the command that reads the folder.

Allowed is one clear line that names the file; the same result, made again or because the file has no part in
it; and, where the damaged file is itself a record, the same result but for it and a line that names it.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults import results, tiny
from tests.faults.attack import Attack, Verdict, Workshop, complaint, first_error, is_among
from tests.faults.commands import Command, Ended, ended
from tests.faults.moments import DISK

MOST_PER_N = 10
"""Attacks on one kind of folder for each one that is asked for, drawn where there are more."""


@dataclass(frozen=True)
class Folder:
    """A kind of folder.

    Attributes:
        name: of the kind.
        source: makes a place in which it is whole, once.
        below: the folder in the place.
        commands: that read it, in a place.
        result: what they come to, of a place.
    """

    name: str
    source: Callable[[Workshop], Path]
    below: str
    commands: Callable[[Workshop, Path], Sequence[Command]]
    result: Callable[[Path], dict[str, object]]


def _again(name: str) -> Callable[[Workshop, Path], Sequence[Command]]:
    return lambda workshop, place: [workshop.subject(name).command(place)]


def _resumed(workshop: Workshop, place: Path) -> Sequence[Command]:
    return [Command("src.train", (f"resume={tiny.RUN}",), place)]


def _searched_on(workshop: Workshop, place: Path) -> Sequence[Command]:
    """One trial more."""
    command = workshop.subject("tune").command(place)
    return [
        Command(
            command.module, tuple(t.replace("n_trials=2", "n_trials=3") for t in command.arguments), place
        )
    ]


def _evaluated_and_reported(workshop: Workshop, place: Path) -> Sequence[Command]:
    return [workshop.subject("evaluate").command(place), tiny.report(place)]


def _model(workshop: Workshop) -> Path:
    """A place with a model folder that has an adapter."""

    def copy() -> Path:
        place = workshop.folder / "a-model"
        (place / DISK).mkdir(parents=True)
        shutil.copytree(workshop.reference("sft-lora").place / DISK / "run" / "model", place / "model")
        return place

    return workshop.made("a-model", copy)


def _from_model(workshop: Workshop, place: Path) -> Sequence[Command]:
    given, model = workshop.given, "model.path=model"
    evaluate = tiny.evaluation(given, Path("model")).command(place)
    train = workshop.subject("sft").command(place)
    arguments = [text for text in train.arguments if not text.startswith(("model.path", "output_dir"))]
    more = (model, f"output_dir={DISK}/trained", "stage.trainer.max_steps=2")
    return [evaluate, Command(train.module, (*arguments, *more), place)]


def _trained_on_mined(workshop: Workshop, place: Path) -> Sequence[Command]:
    """Pretraining reads the texts, and SFT the pairs."""
    pretrain = workshop.subject("mining").command(place)
    more = ("stage=sft", f"output_dir={DISK}/trained", "stage.datamodule.validation_queries=3")
    left_out = ("stage=", "output_dir=", "stage.datamodule.sequence_length")
    arguments = [text for text in pretrain.arguments if not text.startswith(left_out)]
    return [pretrain, Command(pretrain.module, (*arguments, *more), place)]


def _of_both(place: Path) -> dict[str, object]:
    trained = results.of_training(place, place / DISK / "trained")
    return results.of_evaluated(place) | {f"trained/{name}": value for name, value in trained.items()}


def _without_result(name: str) -> Callable[[Workshop], Path]:
    """A place in which a subject has left a cache, and no run."""

    def source(workshop: Workshop) -> Path:
        def copy() -> Path:
            place = tiny.copied(workshop.reference(name).place, workshop.folder / f"cache-of-{name}")
            shutil.rmtree(place / DISK / "run")
            return place

        return workshop.made(f"cache-of-{name}", copy)

    return source


FOLDERS = (
    Folder("run", lambda w: w.interrupted("rl"), f"{DISK}/run", _resumed, results.of_training),
    Folder("run-lora", lambda w: w.interrupted("sft-lora"), f"{DISK}/run", _resumed, results.of_training),
    Folder("model", _model, "model", _from_model, _of_both),
    Folder("cache", _without_result("evaluate"), f"{DISK}/cache", _again("evaluate"), results.of_evaluated),
    Folder("cache-of-rl", _without_result("rl"), f"{DISK}/cache", _again("rl"), results.of_training),
    Folder(
        "evaluation",
        lambda w: w.reference("evaluate").place,
        f"{DISK}/run",
        _evaluated_and_reported,
        lambda place: results.of_evaluated(place) | results.of_report(place),
    ),
    Folder("mined", _without_result("mining"), f"{DISK}/pydocs", _trained_on_mined, _of_both),
    Folder("study", lambda w: w.reference("tune").place, f"{DISK}/run", _searched_on, results.of_search),
    Folder("architectures", _without_result("sft"), ".cache", _again("sft"), results.of_training),
)


# ---- ways to damage a file


def _truncated(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _with_bit_flipped(file: Path, place: int, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _flipped(file: Path, rng: random.Random) -> None:
    _with_bit_flipped(file, file.stat().st_size // 2, rng)


def _flipped_elsewhere(file: Path, rng: random.Random) -> None:
    _with_bit_flipped(file, rng.randrange(file.stat().st_size), rng)


def _emptied(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def _removed(file: Path, rng: random.Random) -> None:
    file.unlink()


def _replaced(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


WAYS = {
    "truncated": _truncated,
    "flipped": _flipped,
    "flipped-elsewhere": _flipped_elsewhere,
    "emptied": _emptied,
    "removed": _removed,
    "directory": _replaced,
}


def attacks(workshop: Workshop, n: int, only: Sequence[str]) -> Iterator[Attack]:
    """Every file in every way, or `MOST_PER_N * n` of them for each kind of folder."""
    for folder in FOLDERS:
        if not is_among(f"damage/{folder.name}", only):
            continue
        below = folder.source(workshop) / folder.below
        files = sorted(path for path in below.rglob("*") if path.is_file())
        found = [
            Attack(
                f"damage/{folder.name}/{_stable(file.relative_to(below).as_posix())}/{way}",
                partial(_damaged, workshop, folder, file.relative_to(below), way),
            )
            for file in files
            for way in WAYS
            if file.stat().st_size > 0 or way in ("removed", "directory")
        ]
        if len(found) > MOST_PER_N * n:
            found = random.Random(folder.name).sample(found, MOST_PER_N * n)
        yield from found


def _stable(name: str) -> str:
    """A name without what differs from one workshop to the next, as hashes of keys do."""
    return "/".join("…" if len(part) == 24 and part.isalnum() else part for part in name.split("/"))


def _expected(workshop: Workshop, folder: Folder) -> dict[str, object]:
    """What the commands come to where nothing is damaged."""

    def make() -> dict[str, object]:
        with workshop.place(folder.source(workshop)) as place:
            for command in folder.commands(workshop, place):
                done = ended(command)
                if done.code != 0:
                    raise RuntimeError(f"{folder.name} fails undamaged: {done.output[-2000:]}")
            return folder.result(place)

    return workshop.made(f"expected-{folder.name}", make)


def _damaged(workshop: Workshop, folder: Folder, name: Path, way: str, rng: random.Random) -> Verdict:
    expected = _expected(workshop, folder)
    with workshop.place(folder.source(workshop)) as place:
        WAYS[way](place / folder.below / name, rng)
        output = ""
        for command in folder.commands(workshop, place):
            done = ended(command)
            output += done.output
            story = f"{command.module}: {done.code}"
            if done.code is None:
                return Verdict("hangs", story)
            if done.code != 0:
                wrong = complaint(done, _known_as(folder, name, done))
                return Verdict(
                    "refused" if wrong is None else "untold", f"{story}; {wrong or first_error(done)}"
                )
        found = _differences(folder.result, place, expected)
        if not found:
            return Verdict("equal", story)
        is_told = name.name in output and all(
            name.name in each or Path(each).name in output for each in found
        )
        return Verdict("refused" if is_told else "differs", f"{story}; {', '.join(found)}")


def _known_as(folder: Folder, name: Path, done: Ended) -> str:
    """What a refusal must hold: the file's name, or the path of its folder where that is not all of it."""
    above = f"{folder.below}/{name.parent.as_posix()}"
    return above if name.parent != Path() and above in first_error(done) else name.name


def _differences(result: Callable[[Path], dict], place: Path, expected: dict) -> list[str]:
    """As `results.differences`; what cannot be read at all differs too."""
    try:
        return results.differences(result(place), expected)
    except Exception as error:
        return [f"the result cannot be read: {error!r}"[:200]]
