"""Which rows are encoded again, a file per rule."""
