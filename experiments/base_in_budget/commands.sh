# Time: 15 minutes
python -m src.train stage=pretrain save_dtype=bfloat16 stage.trainer.max_steps=160 \
    output_dir=outputs/reproduce/base_in_budget/base if_exists=resume
python -m src.train experiment=quickstart data.split=all \
    model.path=outputs/reproduce/base_in_budget/base/model stage.trainer.max_steps=200 \
    stage.trainer.val_check_interval=200 output_dir=outputs/reproduce/base_in_budget/sft if_exists=resume
python -m src.evaluate model.path=outputs/reproduce/base_in_budget/sft/model \
    base.path=outputs/reproduce/base_in_budget/base/model benchmarks=[pydocs] \
    modes=[bm25,base-direct,direct,reasoning,base-reasoning,shuffled-reasoning] \
    output_dir=outputs/reproduce/base_in_budget/eval
