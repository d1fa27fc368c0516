"""`python -m src.benchmarks.scale`: see `search_r3.benchmarks.scale`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.scale")
