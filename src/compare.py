"""`python -m src.compare`: see `search_r3.compare`."""

from src import launch

if __name__ == "__main__":
    launch("compare")
