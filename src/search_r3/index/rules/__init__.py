"""Which rows are encoded again, a file per rule; `certified` also has `forecast` and `needed_bands`."""
