"""`python -m src.bench`: see `search_r3.bench`."""

from src import launch

if __name__ == "__main__":
    launch("bench")
