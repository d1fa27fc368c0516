"""Who searches: flat, ivf, hnsw, and BM25 over words."""
