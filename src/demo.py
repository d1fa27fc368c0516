"""`python -m src.demo`: see `search_r3.demo`."""

from src import launch

if __name__ == "__main__":
    launch("demo")
