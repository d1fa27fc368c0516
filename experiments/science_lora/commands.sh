# Time: 2 hours
# Data: ENTAILMENTBANK_DIR with corpus.jsonl queries.jsonl explanations.jsonl
python -m src.base --output outputs/reproduce/science_lora/base
python -m src.train experiment=science_sft model.name=outputs/reproduce/science_lora/base \
    data.path="$ENTAILMENTBANK_DIR" seed=3 stage.trainer.max_steps=200 \
    output_dir=outputs/reproduce/science_lora/full if_exists=resume
python -m src.train experiment=science_sft model=smollm2_135m_lora \
    model.name=outputs/reproduce/science_lora/base data.path="$ENTAILMENTBANK_DIR" seed=3 \
    stage.module.optimization.learning_rate=2.0e-3 stage.trainer.max_steps=200 \
    output_dir=outputs/reproduce/science_lora/lora if_exists=resume
