"""`python -m src.base`: see `search_r3.base`."""

from src import launch

if __name__ == "__main__":
    launch("base")
