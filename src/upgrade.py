"""`python -m src.upgrade`: see `search_r3.upgrade`."""

from src import launch

if __name__ == "__main__":
    launch("upgrade")
