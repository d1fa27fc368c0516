# Time: 45 minutes
python -m src.train stage=pretrain save_dtype=bfloat16 output_dir=outputs/reproduce/nano_base/base \
    if_exists=resume
