# Time: 45 minutes
# Data: BEIR_DIR with cosqa
python -m src.train experiment=quickstart seed=1 output_dir=outputs/reproduce/rl_pydocs/sft \
    if_exists=resume
python -m src.train experiment=rl_pydocs model.path=outputs/reproduce/rl_pydocs/sft/model seed=1 \
    refresh=candidates reward.ranking.k=null stage.trainer.max_steps=100 \
    output_dir=outputs/reproduce/rl_pydocs/seed1 if_exists=resume
python -m src.train experiment=rl_pydocs model.path=outputs/reproduce/rl_pydocs/sft/model seed=2 \
    refresh=candidates reward.ranking.k=null stage.trainer.max_steps=100 \
    output_dir=outputs/reproduce/rl_pydocs/seed2 if_exists=resume
python -m src.train experiment=rl_pydocs model.path=outputs/reproduce/rl_pydocs/sft/model seed=3 \
    refresh=candidates reward.ranking.k=null stage.trainer.max_steps=100 \
    output_dir=outputs/reproduce/rl_pydocs/seed3 if_exists=resume
python -m src.evaluate model.path=outputs/reproduce/rl_pydocs/sft/model benchmarks=[pydocs,cosqa] \
    beir_dir="$BEIR_DIR" modes=[bm25,direct,reasoning,shuffled-reasoning] \
    output_dir=outputs/reproduce/rl_pydocs/eval/sft
python -m src.evaluate model.path=outputs/reproduce/rl_pydocs/seed1/model \
    base.path=outputs/reproduce/rl_pydocs/sft/model seed=1 benchmarks=[pydocs,cosqa] beir_dir="$BEIR_DIR" \
    output_dir=outputs/reproduce/rl_pydocs/eval/seed1 \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning]
python -m src.evaluate model.path=outputs/reproduce/rl_pydocs/seed2/model \
    base.path=outputs/reproduce/rl_pydocs/sft/model seed=2 benchmarks=[pydocs,cosqa] beir_dir="$BEIR_DIR" \
    output_dir=outputs/reproduce/rl_pydocs/eval/seed2 \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning]
python -m src.evaluate model.path=outputs/reproduce/rl_pydocs/seed3/model \
    base.path=outputs/reproduce/rl_pydocs/sft/model seed=3 benchmarks=[pydocs,cosqa] beir_dir="$BEIR_DIR" \
    output_dir=outputs/reproduce/rl_pydocs/eval/seed3 \
    modes=[direct,reasoning,base-reasoning,shuffled-reasoning]
