"""`python -m src.gate`: see `search_r3.gate`."""

from src import launch

if __name__ == "__main__":
    launch("gate")
