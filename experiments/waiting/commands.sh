# Time: 3 minutes
python -m src.benchmarks.waiting --busy 0 1 2 --rounds 3 --seconds 3 \
    --output outputs/reproduce/waiting/waiting.json
