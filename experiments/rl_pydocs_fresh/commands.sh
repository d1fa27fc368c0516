# Time: 4 hours
# Data: BEIR_DIR with cosqa
python -m src.train experiment=sft_pydocs_full seed=1 output_dir=outputs/reproduce/rl_pydocs_fresh/sft \
    if_exists=resume
python -m src.train experiment=rl_pydocs model.path=outputs/reproduce/rl_pydocs_fresh/sft/model seed=1 \
    output_dir=outputs/reproduce/rl_pydocs_fresh/seed1 if_exists=resume
python -m src.train experiment=rl_pydocs model.path=outputs/reproduce/rl_pydocs_fresh/sft/model seed=2 \
    output_dir=outputs/reproduce/rl_pydocs_fresh/seed2 if_exists=resume
python -m src.train experiment=rl_pydocs model.path=outputs/reproduce/rl_pydocs_fresh/sft/model seed=3 \
    output_dir=outputs/reproduce/rl_pydocs_fresh/seed3 if_exists=resume
python -m src.evaluate model.path=outputs/reproduce/rl_pydocs_fresh/sft/model benchmarks=[pydocs,cosqa] \
    beir_dir="$BEIR_DIR" modes=[bm25,direct,reasoning,shuffled-reasoning] \
    output_dir=outputs/reproduce/rl_pydocs_fresh/eval/sft
python -m src.evaluate model.path=outputs/reproduce/rl_pydocs_fresh/seed1/model \
    base.path=outputs/reproduce/rl_pydocs_fresh/sft/model seed=1 benchmarks=[pydocs,cosqa] \
    beir_dir="$BEIR_DIR" output_dir=outputs/reproduce/rl_pydocs_fresh/eval/seed1 \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning]
python -m src.evaluate model.path=outputs/reproduce/rl_pydocs_fresh/seed2/model \
    base.path=outputs/reproduce/rl_pydocs_fresh/sft/model seed=2 benchmarks=[pydocs,cosqa] \
    beir_dir="$BEIR_DIR" output_dir=outputs/reproduce/rl_pydocs_fresh/eval/seed2 \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning]
python -m src.evaluate model.path=outputs/reproduce/rl_pydocs_fresh/seed3/model \
    base.path=outputs/reproduce/rl_pydocs_fresh/sft/model seed=3 benchmarks=[pydocs,cosqa] \
    beir_dir="$BEIR_DIR" output_dir=outputs/reproduce/rl_pydocs_fresh/eval/seed3 \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning]
python -m src.train experiment=rl_pydocs model.path=outputs/reproduce/rl_pydocs_fresh/sft/model seed=1 \
    refresh=candidates output_dir=outputs/reproduce/rl_pydocs_fresh/candidates if_exists=resume
python -m src.evaluate model.path=outputs/reproduce/rl_pydocs_fresh/candidates/model seed=1 \
    benchmarks=[pydocs,cosqa] beir_dir="$BEIR_DIR" modes=[direct,reasoning] \
    output_dir=outputs/reproduce/rl_pydocs_fresh/eval/candidates
