"""`python -m src.benchmarks.base_parity`: see `search_r3.benchmarks.base_parity`."""

from src import launch

if __name__ == "__main__":
    launch("benchmarks.base_parity")
