"""Search-R3: a language model that reasons about a query and emits its embedding."""
