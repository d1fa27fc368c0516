"""What is on disk: the cache of a corpus, the live rows of a run with their journal, and saved folders."""
