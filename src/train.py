"""`python -m src.train`: see `search_r3.train`."""

from src import launch

if __name__ == "__main__":
    launch("train")
