"""What is on disk: the cache of a corpus, and the live rows of a run."""
