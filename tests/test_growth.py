"""`python -m src.benchmarks.growth`: fits of known laws, and a small run of every axis."""

import json

import pytest

from search_r3.benchmarks.growth import fits, fitted, main, written
from search_r3.errors import UsageError


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found_with_no_doubt(power):
    sizes = [1, 3, 10, 100]
    found = fitted(sizes, [0.5 * size**power for size in sizes])
    assert found == pytest.approx({"exponent": power, "low": power, "high": power, "last": power}, abs=1e-3)


def test_the_interval_is_that_of_a_line_through_three_points_by_hand():
    # log2: x 0, 1, 2 and y 0, 2, 1; slope 1/2, rests -1/2, 1, -1/2, their squares 3/2 over 1 degree of
    # freedom and a spread of 2: standard error sqrt(3/4), times 12.706
    found = fitted([1, 2, 4], [1, 4, 2])
    assert found["exponent"] == 0.5
    assert found["high"] - found["exponent"] == pytest.approx(12.706 * 0.75**0.5, rel=1e-3)
    assert found["last"] == -1


def rows_of(part, axis, cost, sizes=(10, 100, 1000, 10_000)):
    return [
        {"axis": axis, "part": part, "size": size, "seconds": 1.0, "cpu_s": cost(size), "memory_kib": 2048}
        for size in sizes
    ]


def test_what_grows_faster_than_it_must_is_marked_and_fixed_costs_are_not():
    rows = [
        *rows_of("search", "documents", lambda n: 0.1 + 1e-3 * n),
        *rows_of("exact ranks", "documents", lambda n: 1e-4 * n**1.5),
        *rows_of("contrastive losses", "batch", lambda n: 1e-4 * n**2),
        *rows_of("ledger", "documents", lambda n: 1e-6),
        *rows_of("search", "ranks", lambda n: 1 / n, sizes=(1, 2)),
    ]
    found = {(fit["axis"], fit["part"]): fit for fit in fits(rows)}
    assert [key for key, fit in found.items() if fit["too_fast"]] == [("documents", "exact ranks")]
    assert ("documents", "ledger") not in found  # too short to be timed
    assert found["ranks", "search"]["low"] is None
    assert "| documents | exact ranks | 1.50, too fast | 1.50 to 1.50 |" in written(fits(rows), rows, [])


def test_a_small_run_writes_its_figures_tables_and_picture(tmp_path, capsys):
    sizes = ["--documents", "300", "600", "--group", "2", "4", "--batch", "8", "16", "--length", "8", "16"]
    axes = ["--axes", "documents", "group", "batch", "length"]
    main(["--output", str(tmp_path / "g"), "--rounds", "1", "--backends", "0", *axes, *sizes])
    content = json.loads((tmp_path / "g" / "metrics.json").read_text())
    parts = {(row["axis"], row["part"]) for row in content["rows"]}
    assert parts == {
        ("documents", "search"), ("documents", "exact ranks"), ("documents", "ledger"),
        ("documents", "checkpoint"), ("documents", "refresh, candidates"),
        ("documents", "refresh, certified"),
        ("group", "exact ranks"), ("group", "rollouts"), ("batch", "contrastive losses"), ("length", "embed"),
    }  # fmt: skip
    assert all(row["seconds"] > 0 and row["cpu_s"] >= 0 and row["memory_kib"] >= 0 for row in content["rows"])
    assert content["machine"]["cores"] >= 1
    assert (tmp_path / "g" / "metrics.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "g" / "tables.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--documents", "1000", "500"], "--documents must be growing sizes from 100 on"),
        (["--group", "0", "4"], "--group must be growing sizes from 1 on"),
        (["--backends", "50"], "--backends must be 0 or at least 10000"),
        (["--model", "nowhere"], "no trained model folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(arguments, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        main(["--output", str(tmp_path / "g"), *arguments])
    assert not (tmp_path / "g").exists()
