# Time: 90 minutes
# Data: ENTAILMENTBANK_DIR with corpus.jsonl queries.jsonl explanations.jsonl
python -m src.base --output outputs/reproduce/science_gain/base
python -m src.train experiment=science_sft model.name=outputs/reproduce/science_gain/base data.path="$ENTAILMENTBANK_DIR" \
    seed=1 output_dir=outputs/reproduce/science_gain/sft if_exists=resume
python -m src.benchmarks.popularity "$ENTAILMENTBANK_DIR" --output outputs/reproduce/science_gain/popularity.json \
    --reasonings outputs/reproduce/science_gain/texts
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=tuning benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/reasonings.human.jsonl \
    modes=[bm25,direct,reasoning,shuffled-reasoning,given-reasoning,given-bm25] \
    output_dir=outputs/reproduce/science_gain/eval-human/tuning
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=set_aside benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/reasonings.human.jsonl \
    modes=[bm25,direct,reasoning,shuffled-reasoning,given-reasoning,given-bm25] \
    output_dir=outputs/reproduce/science_gain/eval-human/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=dev benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/reasonings.human.jsonl \
    modes=[bm25,direct,reasoning,shuffled-reasoning,given-reasoning,given-bm25] \
    output_dir=outputs/reproduce/science_gain/eval-human/dev
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=tuning benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/reasonings.answer.jsonl \
    modes=[given-reasoning,given-bm25] \
    output_dir=outputs/reproduce/science_gain/eval-answer/tuning
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=set_aside benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/reasonings.answer.jsonl \
    modes=[given-reasoning,given-bm25] \
    output_dir=outputs/reproduce/science_gain/eval-answer/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=dev benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/reasonings.answer.jsonl \
    modes=[given-reasoning,given-bm25] \
    output_dir=outputs/reproduce/science_gain/eval-answer/dev
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=tuning benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/reasonings.filler.jsonl \
    modes=[given-reasoning] \
    output_dir=outputs/reproduce/science_gain/eval-filler/tuning
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=set_aside benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/reasonings.filler.jsonl \
    modes=[given-reasoning] \
    output_dir=outputs/reproduce/science_gain/eval-filler/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=dev benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/reasonings.filler.jsonl \
    modes=[given-reasoning] \
    output_dir=outputs/reproduce/science_gain/eval-filler/dev
python -m experiments.science.answers \
    --own outputs/reproduce/science_gain/eval-human/set_aside outputs/reproduce/science_gain/eval-human/dev \
    --given outputs/reproduce/science_gain/eval-answer/set_aside outputs/reproduce/science_gain/eval-answer/dev \
    --output outputs/reproduce/science_gain/answers.json \
    --answers outputs/reproduce/science_gain/texts/answers.own.jsonl
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=set_aside benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/answers.own.jsonl \
    modes=[given-reasoning,given-bm25] output_dir=outputs/reproduce/science_gain/eval-own-answer/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=dev benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 reasonings=outputs/reproduce/science_gain/texts/answers.own.jsonl \
    modes=[given-reasoning,given-bm25] output_dir=outputs/reproduce/science_gain/eval-own-answer/dev
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=set_aside benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 model.read_state=before modes=[direct,reasoning] \
    output_dir=outputs/reproduce/science_gain/eval-before/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=set_aside benchmarks=[entailmentbank] model.name=outputs/reproduce/science_gain/base \
    'model.embed_token="<jupyter_script>"' model.prompts.direct_system=Question: \
    "model.prompts.reasoning_system='Answer the question in a few words. Then state the facts that explain the answer in three short sentences.'" \
    model.prompts.document_system=Fact: 'model.prompts.lead_in=""' model.lengths.query=96 model.lengths.document=64 \
    model.lengths.reasoning=64 model.lengths.repeat_ngram=8 model.dtype=bfloat16 \
    base.path=outputs/reproduce/science_gain/sft/model modes=[direct,reasoning,base-reasoning] \
    output_dir=outputs/reproduce/science_gain/eval-base/set_aside
python -m src.evaluate data=entailmentbank data.path="$ENTAILMENTBANK_DIR" \
    data.test_part=set_aside benchmarks=[entailmentbank] model.path=outputs/reproduce/science_gain/sft/model \
    model.dtype=bfloat16 modes=[given-reasoning,given-bm25] \
    reasonings=outputs/reproduce/science_gain/eval-base/set_aside/entailmentbank-set-aside/reasoning/reasoning.jsonl \
    output_dir=outputs/reproduce/science_gain/eval-base-writes/set_aside
