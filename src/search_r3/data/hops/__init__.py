"""`data=hops`: its words, settings, names, world and running text, and the reader that ties them together."""
