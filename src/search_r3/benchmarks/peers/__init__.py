"""This project against what its users would use instead: a module per kind of row of `src.bench`."""
