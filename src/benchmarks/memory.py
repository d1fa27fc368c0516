"""`python -m src.benchmarks.memory`: see `search_r3.benchmarks.memory`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.memory")
