# Time: 45 minutes
# Data: BEIR_DIR with cosqa
python -m src.train experiment=quickstart data.split=all seed=1 stage.trainer.max_steps=300 \
    stage.trainer.val_check_interval=75 output_dir=outputs/reproduce/sft_quickstart/seed1/sft \
    if_exists=resume
python -m src.train experiment=quickstart data.split=all seed=2 stage.trainer.max_steps=300 \
    stage.trainer.val_check_interval=75 output_dir=outputs/reproduce/sft_quickstart/seed2/sft \
    if_exists=resume
python -m src.train experiment=quickstart data.split=all seed=3 stage.trainer.max_steps=300 \
    stage.trainer.val_check_interval=75 output_dir=outputs/reproduce/sft_quickstart/seed3/sft \
    if_exists=resume
python -m src.evaluate model.path=outputs/reproduce/sft_quickstart/seed1/sft/model seed=1 \
    base.path=experiments/nano_base/model benchmarks=[pydocs] \
    output_dir=outputs/reproduce/sft_quickstart/seed1/eval \
    modes=[bm25,base-direct,direct,reasoning,base-reasoning,shuffled-reasoning]
python -m src.evaluate model.path=outputs/reproduce/sft_quickstart/seed2/sft/model seed=2 \
    base.path=experiments/nano_base/model benchmarks=[pydocs] \
    output_dir=outputs/reproduce/sft_quickstart/seed2/eval \
    modes=[bm25,base-direct,direct,reasoning,base-reasoning,shuffled-reasoning]
python -m src.evaluate model.path=outputs/reproduce/sft_quickstart/seed3/sft/model seed=3 \
    base.path=experiments/nano_base/model benchmarks=[pydocs] \
    output_dir=outputs/reproduce/sft_quickstart/seed3/eval \
    modes=[bm25,base-direct,direct,reasoning,base-reasoning,shuffled-reasoning]
python -m src.evaluate model.path=outputs/reproduce/sft_quickstart/seed1/sft/model seed=1 \
    benchmarks=[cosqa] beir_dir="$BEIR_DIR" output_dir=outputs/reproduce/sft_quickstart/seed1/cosqa
python -m src.evaluate model.path=outputs/reproduce/sft_quickstart/seed2/sft/model seed=2 \
    benchmarks=[cosqa] beir_dir="$BEIR_DIR" output_dir=outputs/reproduce/sft_quickstart/seed2/cosqa
python -m src.evaluate model.path=outputs/reproduce/sft_quickstart/seed3/sft/model seed=3 \
    benchmarks=[cosqa] beir_dir="$BEIR_DIR" output_dir=outputs/reproduce/sft_quickstart/seed3/cosqa
