"""`python -m src.benchmarks.growth`: see `search_r3.benchmarks.growth`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.growth")
