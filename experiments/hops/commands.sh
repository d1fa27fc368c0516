# Time: 55 minutes
OMP_NUM_THREADS=1 make hops SEED=1 HOPS=outputs/reproduce/hops/seed1
OMP_NUM_THREADS=1 make hops SEED=2 HOPS=outputs/reproduce/hops/seed2
OMP_NUM_THREADS=1 make hops SEED=3 HOPS=outputs/reproduce/hops/seed3
OMP_NUM_THREADS=2 make hops SEED=1 HOPS=outputs/reproduce/hops/seed1-2threads
OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 make hops SEED=1 HOPS=outputs/reproduce/hops/seed1-avx2
python -m src.report --runs outputs/reproduce/hops/seed1 outputs/reproduce/hops/seed2 \
    outputs/reproduce/hops/seed3 outputs/reproduce/hops/seed1-2threads outputs/reproduce/hops/seed1-avx2 \
    --output outputs/reproduce/hops/runs.json
OMP_NUM_THREADS=1 make hops SEED=1 HOPS=outputs/reproduce/hops/seed1 REFRESH=frozen
OMP_NUM_THREADS=1 make hops SEED=1 HOPS=outputs/reproduce/hops/seed1 REFRESH=graph
OMP_NUM_THREADS=1 make hops SEED=1 HOPS=outputs/reproduce/hops/seed1 REFRESH=drift
OMP_NUM_THREADS=1 make hops SEED=1 HOPS=outputs/reproduce/hops/seed1 REFRESH=certified
OMP_NUM_THREADS=1 make hops SEED=1 HOPS=outputs/reproduce/hops/seed1 REFRESH=full
