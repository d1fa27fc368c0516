# Time: 100 minutes
python -m src.train experiment=quickstart seed=1 output_dir=outputs/reproduce/refresh/sft if_exists=resume
python -m src.benchmarks.refresh model.path=outputs/reproduce/refresh/sft/model \
    output_dir=outputs/reproduce/refresh/rules
python -m src.benchmarks.scale drift_dir=outputs/reproduce/refresh/rules/full/drift n_documents=20000 \
    n_steps=30 audit_every_n_steps=3 backends.graph=flat output_dir=outputs/reproduce/refresh/replay
