"""`python -m src.search`: see `search_r3.search`."""

from src import launch

if __name__ == "__main__":
    launch("search")
