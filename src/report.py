"""`python -m src.report`: see `search_r3.report`."""

from src import launch

if __name__ == "__main__":
    launch("report")
