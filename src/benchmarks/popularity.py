"""`python -m src.benchmarks.popularity`: see `search_r3.benchmarks.popularity`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.popularity")
