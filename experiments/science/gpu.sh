#!/usr/bin/env bash
# SFT, RL and evaluation of the science task on one GPU: make science-gpu SCIENCE_DIR=<folder>. Several seeds run beside
# each other, since one alone leaves the GPU waiting; each then has a log of its own.
# Runs with the torch that GPU_PYTHON has. Metrics, curves and adapters are gathered in OUT/small, some 60 MB.
# From the environment: SCIENCE_DIR, GPU_PYTHON, BASE, SEEDS, OUT; DEVICE, SFT, RL and EVALUATION for a try on a CPU.
set -euo pipefail
: "${GPU_PYTHON:=python3}" "${BASE:=outputs/bases/smollm2_135m}" "${SEEDS:=1 2 3}" "${OUT:=outputs/science-gpu}"
: "${DEVICE:=cuda}" "${SFT:=}" "${RL:=}" "${EVALUATION:=}"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

refuse() { echo "error: $*" >&2; exit 2; }

test -f "${SCIENCE_DIR:-}/explanations.jsonl" ||
	refuse "SCIENCE_DIR=<folder> must hold the collection, see experiments/science/README.md"
test -f "$BASE/config.json" || refuse "BASE=$BASE holds no model; make base writes outputs/bases/smollm2_135m"
"$GPU_PYTHON" - "$DEVICE" <<'PYTHON' || exit 2
import importlib.util
import sys

NEEDED = ("torch", "transformers", "pytorch_lightning", "hydra", "peft", "faiss", "torchmetrics", "bm25s", "datasets")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}; requirements.lock names the versions")
import torch

if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit(f"error: torch {torch.__version__} of {sys.executable} sees no CUDA device; make science runs on a CPU")
print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if sys.argv[1] == 'cuda' else 'CPU'}")
PYTHON

run() { "$GPU_PYTHON" -m "src.$1" "${@:2}"; }
evaluate() { # <stage> <model folder> <further arguments>
	run evaluate data=entailmentbank "data.path=$SCIENCE_DIR" data.test_part=set_aside benchmarks=[entailmentbank] \
		"model.path=$2" "model.device=$DEVICE" "seed=$seed" "output_dir=$here/eval/$1" "${@:3}" $EVALUATION
}
one_seed() {
	here=$OUT/seed$seed
	run train experiment=science_gpu_sft "model.name=$BASE" "data.path=$SCIENCE_DIR" "seed=$seed" \
		"output_dir=$here/sft" if_exists=resume $SFT
	run train experiment=science_gpu_rl "model.path=$here/sft/model" "data.path=$SCIENCE_DIR" "seed=$seed" \
		"output_dir=$here/rl" if_exists=resume $RL
	evaluate sft "$here/sft/model" 'modes=[bm25,direct,reasoning,shuffled-reasoning]'
	evaluate rl "$here/rl/model" 'modes=[direct,reasoning,base-reasoning,shuffled-reasoning]' "base.path=$here/sft/model"
	run report "$here/sft" "$here/rl" "$here/eval/sft" "$here/eval/rl" --output "$here/metrics.json" --html "$here/report.html"
	for part in metrics.json report.html {sft,rl}/{config.yaml,provenance.json,metrics.json,completions.jsonl,csv,model}; do
		test -e "$here/$part" || continue
		mkdir -p "$OUT/small/seed$seed/$(dirname "$part")"
		cp -r "$here/$part" "$OUT/small/seed$seed/$(dirname "$part")"
	done
}

read -ra seeds <<<"$SEEDS"
if test ${#seeds[@]} = 1; then
	seed=$SEEDS
	one_seed
else
	mkdir -p "$OUT"
	declare -A running=()
	for seed in "${seeds[@]}"; do
		echo "seed $seed: see $OUT/seed$seed.log"
		(one_seed) >"$OUT/seed$seed.log" 2>&1 &
		running[$seed]=$!
	done
	trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
	failed=
	for seed in "${seeds[@]}"; do wait "${running[$seed]}" || failed+=" $seed"; done
	test -z "$failed" || {
		for seed in $failed; do tail -n 3 "$OUT/seed$seed.log" >&2; done
		refuse "seeds that failed:$failed; the same command goes on where they stopped"
	}
fi
echo "all of it $(du -sh "$OUT/small" | cut -f1)  $OUT/small"
