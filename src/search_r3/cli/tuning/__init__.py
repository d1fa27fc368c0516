"""A search over configuration keys: its space, its study and its trials."""
