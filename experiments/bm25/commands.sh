# Time: 1 minute
# Data: BEIR_DIR with scifact cosqa cranfield
python -m src.evaluate benchmarks=[scifact,cosqa,cranfield] beir_dir="$BEIR_DIR" modes=[bm25] \
    bm25.analyzer=auto output_dir=outputs/reproduce/bm25/auto
python -m src.evaluate benchmarks=[scifact,cosqa,cranfield] beir_dir="$BEIR_DIR" modes=[bm25] \
    bm25.analyzer=english output_dir=outputs/reproduce/bm25/english
