"""Training pairs, collections and the data modules that serve them."""
