"""`python -m src.encode`: see `search_r3.encode`."""

from src import launch

if __name__ == "__main__":
    launch("encode")
