"""A disk that fills up or can only be read: what is said, what is kept, and that the run goes on afterwards.

The disk is a real one, of memory, which only root may mount; elsewhere these tests are skipped.
"""

import contextlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.command import call

STEPS = ["stage.trainer.max_steps=8", "stage.callbacks.checkpoint.save_every_n_steps=1"]


def mounted(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)


@contextlib.contextmanager
def disk(place: Path, size: int):
    """A disk of so many bytes."""
    place.mkdir()
    done = mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    if done.returncode:
        pytest.skip(f"no disk of its own can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, and the bytes that its folder takes."""
    place = tmp_path_factory.mktemp("whole")
    code, output = call("train", *STEPS, f"output_dir={place / 'run'}", cwd=place)
    assert code == 0, output
    sizes = {file.stat().st_ino: file.stat().st_blocks * 512 for file in place.rglob("*") if file.is_file()}
    return place / "run", sum(sizes.values())


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_a_run_on_a_full_disk_ends_in_a_line_and_goes_on_when_there_is_room(tmp_path, whole, share):
    undisturbed, size = whole
    with disk(tmp_path / "disk", int(size * share)) as place:
        command = [*STEPS, f"output_dir={place / 'run'}", "if_exists=resume"]
        code, output = call("train", *command, cwd=tmp_path)

        assert code == 1, output
        (line,) = re.findall(r"^error: .*", output, re.MULTILINE)
        assert str(place) in line
        assert "No space left on device" in line
        assert "room" in line
        assert "Traceback (most recent" not in output
        assert "Logging error" not in output
        if (place / "run" / "status.json").is_file():
            assert json.loads((place / "run" / "status.json").read_text())["state"] == "failed"
        assert mounted("-o", f"remount,size={4 * size}", str(place)).returncode == 0
        code, output = call("train", *command, cwd=tmp_path)
        assert code == 0, output
        ends = [load_file(run / "model" / "model.safetensors") for run in (place / "run", undisturbed)]
        for name in ends[1]:
            assert (ends[0][name] == ends[1][name]).all(), name
        left = {file.name for file in (place / "run").rglob("*") if re.search(r"part|reserve", file.name)}
        assert left == set()


def test_checkpoints_do_not_pass_through_the_folder_of_temporary_files(tmp_path, whole):
    with disk(tmp_path / "small", 16 * 1024) as small:
        command = [*STEPS, f"output_dir={tmp_path / 'run'}"]
        code, output = call("train", *command, cwd=tmp_path, TMPDIR=str(small))
        assert code == 0, output
        assert list(small.iterdir()) == []
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size > 16 * 1024


def test_a_disk_that_can_only_be_read_is_refused_before_anything_is_done(tmp_path):
    with disk(tmp_path / "disk", 1 << 20) as place:
        (place / "run").mkdir()
        assert mounted("-o", "remount,ro", str(place)).returncode == 0
        code, output = call("train", f"output_dir={place / 'run'}", cwd=tmp_path)
    assert code == 2, output
    assert output.startswith(
        f"error: output_dir={place / 'run'}: cannot be written to (Read-only file system)"
    )
    assert len(output.splitlines()) == 1
