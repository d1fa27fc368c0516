"""`python -m src.evaluate`: see `search_r3.evaluate`."""

from src import launch

if __name__ == "__main__":
    launch("evaluate")
