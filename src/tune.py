"""`python -m src.tune`: see `search_r3.tune`."""

from src import launch

if __name__ == "__main__":
    launch("tune")
