"""`python -m src.benchmarks.waiting`: see `search_r3.benchmarks.waiting`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.waiting")
