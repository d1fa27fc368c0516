# Time: 15 minutes
# Data: BEIR_DIR with scifact cosqa cranfield
python -m src.train experiment=quickstart seed=1 \
    output_dir=outputs/reproduce/other_collections/sft if_exists=resume
python -m src.evaluate model.path=outputs/reproduce/other_collections/sft/model \
    benchmarks=[scifact,cosqa,cranfield] beir_dir="$BEIR_DIR" modes=[bm25,direct,reasoning] \
    output_dir=outputs/reproduce/other_collections/eval
