"""`python -m src.benchmarks.prefix`: see `search_r3.benchmarks.prefix`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.prefix")
