# Time: 2 hours
# Data: ENTAILMENTBANK_DIR with corpus.jsonl queries.jsonl explanations.jsonl
python -m src.base --output outputs/reproduce/science_facts/base
python -m src.train experiment=science_facts model.name=outputs/reproduce/science_facts/base \
    data.path="$ENTAILMENTBANK_DIR" seed=1 output_dir=outputs/reproduce/science_facts/facts if_exists=resume
python -m src.train experiment=science_sft model.path=outputs/reproduce/science_facts/facts/model \
    data.path="$ENTAILMENTBANK_DIR" seed=1 output_dir=outputs/reproduce/science_facts/sft if_exists=resume
python -m src.benchmarks.popularity "$ENTAILMENTBANK_DIR" \
    --output outputs/reproduce/science_facts/popularity.json --reasonings outputs/reproduce/science_facts/texts
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_facts/sft/model model.dtype=bfloat16 \
    reasonings=outputs/reproduce/science_facts/texts/reasonings.human.jsonl \
    modes=[direct,reasoning,shuffled-reasoning,given-reasoning] \
    output_dir=outputs/reproduce/science_facts/eval/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_facts/sft/model model.dtype=bfloat16 \
    reasonings=outputs/reproduce/science_facts/texts/reasonings.answer.jsonl modes=[given-reasoning] \
    output_dir=outputs/reproduce/science_facts/eval-answer/set_aside
python -m experiments.science.answers --own outputs/reproduce/science_facts/eval/set_aside \
    --given outputs/reproduce/science_facts/eval-answer/set_aside --output outputs/reproduce/science_facts/answers.json
