"""`data=pydocs`: settings, sources, mining, cache and card, and the reader that ties them together."""
