# Time: 40 minutes
# Data: BEIR_DIR with cosqa
python -m src.train experiment=sft_pydocs_full data.split=all seed=1 \
    output_dir=outputs/reproduce/sft_pydocs_full/sft if_exists=resume
python -m src.evaluate model.path=outputs/reproduce/sft_pydocs_full/sft/model \
    base.path=experiments/nano_base/model benchmarks=[pydocs] \
    modes=[bm25,base-direct,direct,reasoning,base-reasoning,shuffled-reasoning] \
    output_dir=outputs/reproduce/sft_pydocs_full/eval
python -m src.evaluate model.path=outputs/reproduce/sft_pydocs_full/sft/model benchmarks=[cosqa] \
    beir_dir="$BEIR_DIR" modes=[bm25,direct,reasoning] output_dir=outputs/reproduce/sft_pydocs_full/cosqa
