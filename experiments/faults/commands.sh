# Time: a few hours
python -m tests.faults.run --seed 1 --n 20 --output outputs/reproduce/faults
