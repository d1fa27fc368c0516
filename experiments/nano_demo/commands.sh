# Time: 25 minutes
python -m src.train experiment=quickstart seed=1 output_dir=outputs/reproduce/nano_demo/sft if_exists=resume
python -m src.train experiment=quickstart_rl model.path=outputs/reproduce/nano_demo/sft/model seed=1 \
    output_dir=outputs/reproduce/nano_demo/rl if_exists=resume
python -m src.export to=folder model.path=outputs/reproduce/nano_demo/rl/model save_dtype=bfloat16 \
    output=outputs/reproduce/nano_demo/model
python -m src.evaluate benchmarks=[pydocs] modes=[direct,reasoning] output_dir=outputs/reproduce/nano_demo/eval \
    model.path=outputs/reproduce/nano_demo/model
