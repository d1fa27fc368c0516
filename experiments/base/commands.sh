# Time: 5 minutes
python -m src.base --output outputs/reproduce/base/smollm2_135m
python -m src.benchmarks.base_parity --folder outputs/reproduce/base/smollm2_135m --output \
    outputs/reproduce/base/parity.json
