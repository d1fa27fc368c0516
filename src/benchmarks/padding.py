"""`python -m src.benchmarks.padding`: see `search_r3.benchmarks.padding`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.padding")
