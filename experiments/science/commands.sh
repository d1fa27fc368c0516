# Time: 5 minutes
# Data: ENTAILMENTBANK_DIR with corpus.jsonl queries.jsonl explanations.jsonl
python -m src.benchmarks.popularity "$ENTAILMENTBANK_DIR" --output \
    outputs/reproduce/science/popularity.json --reasonings outputs/reproduce/science
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=dev \
    benchmarks=[entailmentbank] modes=[bm25,given-bm25] \
    reasonings=outputs/reproduce/science/reasonings.answer.jsonl \
    output_dir=outputs/reproduce/science/dev-answer
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=dev \
    benchmarks=[entailmentbank] modes=[bm25,given-bm25] \
    reasonings=outputs/reproduce/science/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science/dev-human
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] modes=[bm25,given-bm25] \
    reasonings=outputs/reproduce/science/reasonings.answer.jsonl \
    output_dir=outputs/reproduce/science/set_aside-answer
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] modes=[bm25,given-bm25] \
    reasonings=outputs/reproduce/science/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science/set_aside-human
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=tuning \
    benchmarks=[entailmentbank] modes=[bm25,given-bm25] \
    reasonings=outputs/reproduce/science/reasonings.answer.jsonl \
    output_dir=outputs/reproduce/science/tuning-answer
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=tuning \
    benchmarks=[entailmentbank] modes=[bm25,given-bm25] \
    reasonings=outputs/reproduce/science/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science/tuning-human
