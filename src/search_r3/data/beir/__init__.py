"""Collections in BEIR layout: a folder, its documents and judgements; as a benchmark, as training rows."""
