# Time: 3 hours
# Data: ENTAILMENTBANK_DIR with corpus.jsonl queries.jsonl explanations.jsonl
# Data: BEIR_DIR with cosqa
python -m src.base --output outputs/reproduce/science_blended/base
python -m src.train experiment=science_sft model.name=outputs/reproduce/science_blended/base \
    data.path="$ENTAILMENTBANK_DIR" seed=2 output_dir=outputs/reproduce/science_blended/sft if_exists=resume
python -m src.benchmarks.popularity "$ENTAILMENTBANK_DIR" --reasonings outputs/reproduce/science_blended/texts
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=set_aside \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_blended/sft/model \
    modes=[direct,reasoning,blended,shuffled-reasoning,given-reasoning] \
    reasonings=outputs/reproduce/science_blended/texts/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science_blended/eval/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=dev \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_blended/sft/model \
    modes=[direct,reasoning,blended,shuffled-reasoning,given-reasoning] \
    reasonings=outputs/reproduce/science_blended/texts/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science_blended/eval/dev
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" data.test_part=tuning \
    benchmarks=[entailmentbank] model.path=outputs/reproduce/science_blended/sft/model \
    modes=[direct,reasoning,blended,shuffled-reasoning,given-reasoning] \
    reasonings=outputs/reproduce/science_blended/texts/reasonings.human.jsonl \
    output_dir=outputs/reproduce/science_blended/eval/tuning
python -m experiments.science_seeds.pairs outputs/reproduce/science_blended/eval \
    --pair direct reasoning --pair direct blended --pair reasoning blended \
    --output outputs/reproduce/science_blended/pairs.json
python -m src.evaluate benchmarks=[cosqa] beir_dir="$BEIR_DIR" model.path=experiments/nano_demo/model \
    modes=[direct,reasoning,blended] output_dir=outputs/reproduce/science_blended/cosqa
