"""`python -m src.export`: see `search_r3.export`."""

from src import launch

if __name__ == "__main__":
    launch("export")
