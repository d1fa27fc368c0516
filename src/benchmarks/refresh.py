"""`python -m src.benchmarks.refresh`: see `search_r3.benchmarks.refresh`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.refresh")
