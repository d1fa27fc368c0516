"""Prints the table of a metrics.json and draws its chart: `python -m src.report <metrics.json>`."""

import argparse
import json
import sys
from pathlib import Path

from src.evaluation.report import print_table, write_chart


def main() -> int:
    """Reads one metrics.json, or that of a folder; 2 where there is none."""
    parser = argparse.ArgumentParser(prog="python -m src.report", description=__doc__)
    parser.add_argument("path", type=Path, help="a metrics.json, or the folder that holds it")
    path = parser.parse_args().path
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        print(f"error: {file} does not exist; `python -m src.evaluate` writes it", file=sys.stderr)
        return 2
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = [row for row in content["rows"] if "ci95" in row]
    print_table(rows)
    print(f"{content['command']}  (commit {content['commit']}, seed {content['seed']})")
    print(f"chart: {write_chart(rows, file.with_suffix('.png'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
