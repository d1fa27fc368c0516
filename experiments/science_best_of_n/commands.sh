# Time: 8 hours
# Data: ENTAILMENTBANK_DIR with corpus.jsonl queries.jsonl explanations.jsonl
python -m src.base --output outputs/reproduce/science_best_of_n/base
python -m src.train experiment=science_sft model.name=outputs/reproduce/science_best_of_n/base \
    stage.callbacks.checkpoint.monitor=null data.path="$ENTAILMENTBANK_DIR" seed=2 \
    output_dir=outputs/reproduce/science_best_of_n/sft if_exists=resume
python -m src.train experiment=science_rl model.path=outputs/reproduce/science_best_of_n/sft/model \
    data.path="$ENTAILMENTBANK_DIR" seed=2 output_dir=outputs/reproduce/science_best_of_n/rl if_exists=resume
python -m src.train experiment=science_rl model.path=outputs/reproduce/science_best_of_n/sft/model \
    stage.module.policy.advantages=best data.path="$ENTAILMENTBANK_DIR" seed=2 \
    output_dir=outputs/reproduce/science_best_of_n/best if_exists=resume
python -m src.benchmarks.popularity "$ENTAILMENTBANK_DIR" --reasonings outputs/reproduce/science_best_of_n/texts
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_best_of_n/sft/model \
    modes=[direct,reasoning,shuffled-reasoning,given-reasoning] \
    reasonings=outputs/reproduce/science_best_of_n/texts/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science_best_of_n/eval/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_best_of_n/rl/model \
    base.path=outputs/reproduce/science_best_of_n/sft/model \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning,given-reasoning] \
    reasonings=outputs/reproduce/science_best_of_n/texts/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science_best_of_n/eval/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_best_of_n/best/model \
    base.path=outputs/reproduce/science_best_of_n/sft/model \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning,given-reasoning] \
    reasonings=outputs/reproduce/science_best_of_n/texts/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science_best_of_n/eval/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=dev \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_best_of_n/sft/model \
    modes=[direct,reasoning,shuffled-reasoning,given-reasoning] \
    reasonings=outputs/reproduce/science_best_of_n/texts/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science_best_of_n/eval/dev
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=dev \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_best_of_n/rl/model \
    base.path=outputs/reproduce/science_best_of_n/sft/model \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning,given-reasoning] \
    reasonings=outputs/reproduce/science_best_of_n/texts/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science_best_of_n/eval/dev
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=dev \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_best_of_n/best/model \
    base.path=outputs/reproduce/science_best_of_n/sft/model \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning,given-reasoning] \
    reasonings=outputs/reproduce/science_best_of_n/texts/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science_best_of_n/eval/dev
python -m experiments.science_seeds.pairs outputs/reproduce/science_best_of_n/eval \
    --pair "sft direct" "best direct" --pair "sft reasoning" "best reasoning" \
    --pair "sft reasoning" "best base-reasoning" --pair "best direct" "best reasoning" \
    --pair "rl direct" "best direct" --pair "rl reasoning" "best reasoning" \
    --pair "rl shuffled-reasoning" "best shuffled-reasoning" \
    --pair "rl given-reasoning" "best given-reasoning" \
    --output outputs/reproduce/science_best_of_n/pairs.json
