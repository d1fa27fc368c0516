# Time: 3 hours
# Data: ENTAILMENTBANK_DIR with corpus.jsonl queries.jsonl explanations.jsonl
# Data: BEIR_DIR with scifact cosqa cranfield
python -m src.base --output outputs/reproduce/science_elsewhere/base
python -m src.train experiment=science_sft model.name=outputs/reproduce/science_elsewhere/base \
    data.path="$ENTAILMENTBANK_DIR" seed=1 output_dir=outputs/reproduce/science_elsewhere/sft if_exists=resume
python -m src.evaluate model.path=outputs/reproduce/science_elsewhere/sft/model model.dtype=bfloat16 \
    model.lengths.document=384 benchmarks=[cosqa,cranfield,scifact] beir_dir="$BEIR_DIR" \
    modes=[bm25,direct,reasoning] output_dir=outputs/reproduce/science_elsewhere/eval
