"""`python -m src.entailmentbank`: see `search_r3.entailmentbank`."""

from src import launch

if __name__ == "__main__":
    launch("entailmentbank")
