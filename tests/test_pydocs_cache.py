"""The cache of mined functions: built once, whole or not at all, and refused where it is damaged."""

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from mined_packages import load_small, module_files, write_distribution

from search_r3.data.pydocs.reader import load_pydocs
from search_r3.data.pydocs.settings import Settings, cache_key
from tests.command import LIMIT_S, PYTHONPATH


def test_the_folder_of_the_cache_is_made_with_those_above_it(tmp_path, monkeypatch):
    files = module_files("smallpack", 30)
    data = load_small(tmp_path, monkeypatch, files, cache_dir=tmp_path / "not" / "there" / "yet")
    assert data.examples
    assert any((tmp_path / "not" / "there" / "yet").iterdir())


def test_two_builds_are_equal_and_the_second_call_reads_the_cache(tmp_path, monkeypatch):
    files = module_files("smallpack")
    first = load_small(tmp_path, monkeypatch, files)
    options = {"include_stdlib": False, "test_share": 0.3, "validation_share": 0.2, "min_test": 1}
    other = load_pydocs(["smallpack==1.2"], tmp_path / "other", workers=1, **options)
    (folder,) = (tmp_path / "cache").iterdir()
    (twin,) = (tmp_path / "other").iterdir()
    assert folder.name == twin.name
    for name in ("train.jsonl", "test.jsonl", "validation.jsonl", "texts.jsonl", "word_counts.json"):
        assert (folder / name).read_bytes() == (twin / name).read_bytes()
    for path in (tmp_path / "site" / "smallpack").iterdir():
        path.unlink()  # a second call can only come from the cache
    again = load_pydocs({"smallpack": "1.2"}, tmp_path / "cache", **options)
    assert again.examples == first.examples == other.examples
    assert list(again.texts) == list(first.texts)
    assert again.corpus.fingerprint == first.corpus.fingerprint


def test_two_processes_that_start_at_once_build_once(tmp_path, monkeypatch):
    site = tmp_path / "site"
    write_distribution(site, "smallpack", "1.2", module_files("smallpack", 30))
    code = (
        "import sys; from search_r3.data.pydocs.reader import load_pydocs\n"
        "options = {'include_stdlib': False, 'test_share': 0.3, 'min_test': 1}\n"
        "data = load_pydocs(['smallpack==1.2'], sys.argv[1], **options)\n"
        "print(data.corpus.fingerprint)"
    )
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{PYTHONPATH}"}
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    jobs = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [job.communicate(timeout=LIMIT_S) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], outputs
    assert len({fingerprint for fingerprint, _ in outputs}) == 1
    assert sum("pydocs: parsing" in log for _, log in outputs) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_failed_build_leaves_no_cache_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("search_r3.data.pydocs.cache.count_words", lambda texts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_small(tmp_path, monkeypatch, module_files("smallpack", 20))
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "missing"])
@pytest.mark.parametrize(
    "name", ["train.jsonl", "texts.offsets", "card.json", "SHA256SUMS", "reasoning-*.json"]
)
def test_a_damaged_cache_is_refused_and_says_how_to_mine_it_anew(tmp_path, monkeypatch, name, damage):
    load_small(tmp_path, monkeypatch, module_files("smallpack", 20))
    (file,) = (tmp_path / "cache").glob(f"*/{name}")
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :]
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"flipped": flipped, "cut": content[:middle], "emptied": b""}[damage])
    options = {"include_stdlib": False, "test_share": 0.3, "validation_share": 0.2, "min_test": 1}

    if damage == "missing" and name.startswith("reasoning"):  # made again
        assert load_pydocs(["smallpack==1.2"], tmp_path / "cache", workers=1, **options).examples
        return
    with pytest.raises(ValueError, match=f"{file.name.split('-')[0]}.*(damaged|cannot be read)") as refused:
        load_pydocs(["smallpack==1.2"], tmp_path / "cache", workers=1, **options)
    remedy = str(refused.value).partition("anew: ")[2]
    assert shlex.split(remedy)[:2] == ["rm", "-r"]
    assert shlex.split(remedy)[2].startswith(str(tmp_path / "cache"))
    subprocess.run(remedy, shell=True, check=True)
    assert load_pydocs(["smallpack==1.2"], tmp_path / "cache", workers=1, **options).examples


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_mining_that_is_interrupted_ends_with_its_workers_and_without_a_traceback(tmp_path, number):
    site, started = tmp_path / "site", tmp_path / "started"
    write_distribution(site, "smallpack", "1.2", module_files("smallpack", 30))
    code = (
        "import pathlib, signal, sys, time\n"
        "from search_r3.data.pydocs import mining, reader\n"
        "def interrupt(*_):\n    raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGTERM, interrupt)\n"
        "signal.signal(signal.SIGINT, interrupt)\n"  # a shell has it ignored in what runs in the background
        "def slow(file):\n    pathlib.Path(sys.argv[2]).touch()\n    time.sleep(600)\n"
        "mining._mine_file = slow\n"
        "try:\n    reader.load_pydocs(['smallpack==1.2'], sys.argv[1], include_stdlib=False, workers=2)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cache"), str(started)],
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{PYTHONPATH}"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_what_a_killed_build_left_is_gone_after_the_next_one(tmp_path, monkeypatch):
    load_small(tmp_path, monkeypatch, module_files("smallpack", 20))
    (folder,) = (tmp_path / "cache").iterdir()
    left = [folder.with_name(name) for name in (f"{folder.name}.partial", f".{folder.name}-8x1kq0")]
    for each in left:
        each.mkdir()
        (each / "train.jsonl").write_text("{")
    other = tmp_path / "cache" / "other.partial"
    other.mkdir()
    folder.rename(tmp_path / "aside")

    options = {"include_stdlib": False, "test_share": 0.3, "validation_share": 0.2, "min_test": 1}
    load_pydocs(["smallpack==1.2"], tmp_path / "cache", workers=1, **options)

    assert sorted((tmp_path / "cache").iterdir()) == sorted([folder, other])


def test_a_cache_that_was_mined_before_is_found_under_the_same_name():
    settings = Settings(("a", "b"), False, 0.08, 0.02, 8, 0.8, True)
    version = f"{sys.version_info[0]}, {sys.version_info[1]}"
    recipe = (
        f'{{"code": 4, "python": [{version}], "settings": {{"include_stdlib": false, '
        '"include_undocumented": true, "max_documents_per_query": 8, "packages": ["a", "b"], '
        '"similarity": 0.8, "test_share": 0.08, "validation_share": 0.02}, '
        '"versions": {"a": "1.0", "b": "2.1"}}'
    )
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    assert cache_key({"b": "2.1", "a": "1.0"}, settings) == f"py{version.replace(', ', '')}-{digest}"
