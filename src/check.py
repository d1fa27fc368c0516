"""`python -m src.check`: see `search_r3.check`."""

from src import launch

if __name__ == "__main__":
    launch("check")
