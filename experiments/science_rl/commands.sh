# Time: 3 hours
# Data: ENTAILMENTBANK_DIR with corpus.jsonl queries.jsonl explanations.jsonl
python -m src.base --output outputs/reproduce/science_rl/base
python -m src.train experiment=science_sft model.name=outputs/reproduce/science_rl/base \
    data.path="$ENTAILMENTBANK_DIR" seed=1 output_dir=outputs/reproduce/science_rl/sft if_exists=resume
python -m src.train experiment=science_rl model.path=outputs/reproduce/science_rl/sft/model \
    data.path="$ENTAILMENTBANK_DIR" seed=1 output_dir=outputs/reproduce/science_rl/rl if_exists=resume
python -m src.benchmarks.popularity "$ENTAILMENTBANK_DIR" \
    --output outputs/reproduce/science_rl/popularity.json --reasonings outputs/reproduce/science_rl/texts
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_rl/sft/model model.dtype=bfloat16 \
    base.path=outputs/reproduce/science_rl/rl/model \
    reasonings=outputs/reproduce/science_rl/texts/reasonings.human.jsonl \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning,given-reasoning] \
    output_dir=outputs/reproduce/science_rl/eval-sft/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_rl/rl/model model.dtype=bfloat16 \
    base.path=outputs/reproduce/science_rl/sft/model \
    reasonings=outputs/reproduce/science_rl/texts/reasonings.human.jsonl \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning,given-reasoning] \
    output_dir=outputs/reproduce/science_rl/eval-rl/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_rl/rl/model model.dtype=bfloat16 \
    reasonings=outputs/reproduce/science_rl/texts/reasonings.answer.jsonl modes=[given-reasoning] \
    output_dir=outputs/reproduce/science_rl/eval-answer/set_aside
python -m experiments.science.answers --own outputs/reproduce/science_rl/eval-rl/set_aside \
    --given outputs/reproduce/science_rl/eval-answer/set_aside --output outputs/reproduce/science_rl/answers.json
