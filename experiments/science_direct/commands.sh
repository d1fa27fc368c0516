# Time: 100 minutes
# Data: ENTAILMENTBANK_DIR with corpus.jsonl queries.jsonl explanations.jsonl
python -m src.base --output outputs/reproduce/science_direct/base
python -m src.train experiment=science_direct model.name=outputs/reproduce/science_direct/base \
    data.path="$ENTAILMENTBANK_DIR" seed=1 output_dir=outputs/reproduce/science_direct/direct if_exists=resume
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=tuning \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_direct/direct/model model.dtype=bfloat16 \
    modes=[direct] output_dir=outputs/reproduce/science_direct/eval/tuning
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_direct/direct/model model.dtype=bfloat16 \
    modes=[direct] output_dir=outputs/reproduce/science_direct/eval/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=dev \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_direct/direct/model model.dtype=bfloat16 \
    modes=[direct] output_dir=outputs/reproduce/science_direct/eval/dev
