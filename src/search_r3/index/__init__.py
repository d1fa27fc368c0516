"""Search over document embeddings and over words."""
