# Time: 80 minutes
python -m src.train experiment=quickstart seed=1 output_dir=outputs/reproduce/refresh_scale/sft \
    if_exists=resume
python -m src.benchmarks.refresh model.path=outputs/reproduce/refresh_scale/sft/model rules=[full] \
    output_dir=outputs/reproduce/refresh_scale/rules
python -m src.benchmarks.scale drift_dir=outputs/reproduce/refresh_scale/rules/full/drift \
    output_dir=outputs/reproduce/refresh_scale/million
