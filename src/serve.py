"""`python -m src.serve`: see `search_r3.serve`."""

from src import launch

if __name__ == "__main__":
    launch("serve")
