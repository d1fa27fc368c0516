# Time: 100 minutes
OMP_NUM_THREADS=2 make train SEED=1 QUICKSTART=outputs/reproduce/quickstart/seed1
OMP_NUM_THREADS=1 make train SEED=2 QUICKSTART=outputs/reproduce/quickstart/seed2
OMP_NUM_THREADS=1 make train SEED=3 QUICKSTART=outputs/reproduce/quickstart/seed3
OMP_NUM_THREADS=1 make train SEED=4 QUICKSTART=outputs/reproduce/quickstart/seed4
OMP_NUM_THREADS=1 make train SEED=5 QUICKSTART=outputs/reproduce/quickstart/seed5
python -m src.report --runs outputs/reproduce/quickstart/seed1 outputs/reproduce/quickstart/seed2 \
    outputs/reproduce/quickstart/seed3 outputs/reproduce/quickstart/seed4 \
    outputs/reproduce/quickstart/seed5 --output outputs/reproduce/quickstart/runs.json
