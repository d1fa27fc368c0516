"""`python -m src.benchmarks.gpu`: see `search_r3.benchmarks.gpu`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.gpu")
