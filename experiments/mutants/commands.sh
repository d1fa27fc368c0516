# Time: several hours
python -m tests.mutation.run --seed 13 --n 100 --output outputs/reproduce/mutants
