# `make` lists the targets. Each makes .venv first where it is missing or older than pyproject.toml.
.DEFAULT_GOAL := help
.PHONY: help demo check test tutorial outputs lab bench matrix colab fuzz results format clean

# The first of these that is CPython 3.10 to 3.13 makes .venv; `make demo PYTHON=...` chooses another.
PYTHON ?= python3 python3.13 python3.12 python3.11 python3.10
USABLE := import ensurepip, sys, venv; \
  sys.exit(sys.implementation.name != "cpython" or not (3, 10) <= sys.version_info[:2] <= (3, 13))

RUN := .venv/bin/python
# Threads that wait for each other without sleeping make a step five times as long where another program has a core.
export OMP_WAIT_POLICY ?= PASSIVE
# glibc keeps what is freed: to give memory back and fetch it again at every layer takes a sixth of the time.
export MALLOC_TRIM_THRESHOLD_ ?= 536870912
export MALLOC_MMAP_THRESHOLD_ ?= 268435456
# Notebooks run in their own folder, on the kernel of .venv whatever other kernels a machine has; out_dir counts
# from the root.
KERNEL := JUPYTER_PATH="$$PWD/.venv/share/jupyter$${JUPYTER_PATH:+:$$JUPYTER_PATH}"
PAPERMILL := $(KERNEL) $(RUN) -m papermill --kernel python3 --cwd notebooks
STYLE = $(RUN) -m ruff check && $(RUN) -m ruff format --check && .venv/bin/lint-imports
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -p no:benchmark -p no:nbval -n auto --maxprocesses 4 --dist worksteal
DEMO := 00_protect_a_photo.ipynb

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s%s\n", $$1, $$2}' Makefile

demo: .venv/.installed ## protect photos: execute notebook 00 into build/demo
	@mkdir -p build/demo
	$(PAPERMILL) notebooks/$(DEMO) build/demo/$(DEMO) -p out_dir build/demo
	@printf '\nExecuted notebook  build/demo/%s\n' $(DEMO)
	@printf 'Report             build/demo/report.json\nPictures and files\n'
	@find build/demo -name '*.png' -o -name '*.psic' | sort | sed 's/^/  /'

check: .venv/.installed ## every day, two minutes: style, imports, fast tests, notebook 00
	$(STYLE)
	$(PYTEST) -m 'not slow and not benchmark'

test: .venv/.installed ## everything, ten minutes: style, imports, all tests, every notebook and its solutions
	$(STYLE)
	$(PYTEST) -m 'not benchmark'

tutorial: .venv/.installed ## execute all notebooks, two at a time, fast profile, into build/tutorial
	@mkdir -p build/tutorial
	@printf '%s\n' notebooks/[0-9]*.ipynb | OMP_NUM_THREADS=1 xargs -P 2 -n 1 sh -c 'echo "$$0"; \
	  $(PAPERMILL) "$$0" "build/tutorial/$${0##*/}" -p fast True -p out_dir build/tutorial --no-progress-bar'

outputs: .venv/.installed ## execute all notebooks and solutions with their defaults and store what they show; renew README's table
	$(RUN) notebooks/upkeep.py --store

lab: .venv/.installed ## open the notebooks in JupyterLab
	$(KERNEL) $(RUN) -m jupyterlab notebooks

matrix: .venv/.installed ## write 50 pictures under twelve CPU settings and read each in all others (an hour)
	PYTHONPATH=. $(RUN) tests/portability.py

colab: ## replay the Colab cell in an environment of Colab's own versions (needs CPython 3.13; ten minutes)
	python3.13 tests/colab.py build/colab

fuzz: .venv/.installed ## decode 5,000 altered files, in 4 GB and 10 seconds each
	PYTHONPATH=. $(RUN) tests/mutants.py

bench: .venv/.installed ## measure speed against CompressAI, without runtime shape checks
	JAXTYPING_DISABLE=1 $(RUN) -m pytest tests/benchmarks

# The paper's section 4 and the limits with the shipped models; PSIC_DATA_ROOT names the data. build/passes keeps what is
# measured, so that a run that was stopped goes on. One rate alone: make results RATES=2
RATES := 1 2 3 4
PSIC := .venv/bin/psic
MEASURE = --cache build/passes --json data/results
results: export JAXTYPING_DISABLE := 1
results: .venv/.installed ## measure the shipped models on all data sets (hours), renew data/results and the tables
	@set -e; for q in $(RATES); do \
	  $(PSIC) evaluate --checkpoint psic-q$$q --dataset flickr8k coco scenes imagenet celeba --limit 500 150 150 300 200 \
	    --target lite-clip lite2-clip $(MEASURE)/psic-q$$q.json; \
	  $(RUN) data/measure/captions.py --checkpoint psic-q$$q --dataset flickr8k --limit 300 $(MEASURE)/captions-q$$q.json; \
	done
	$(RUN) data/measure/sizes.py --checkpoint psic-q3 $(MEASURE)/sizes.json
	$(RUN) data/measure/sizes.py --checkpoint psic-q3 --dataset flickr8k-dev held-out --side 160 --budget 4 6 8 11 16 --limit 60 \
	  $(MEASURE)/budgets.json
	$(RUN) data/measure/rate_distortion.py --dataset kodak --json data/results/rd-kodak.json
	$(RUN) data/measure/limits.py psic-q3 --json data/results/limits.json
	$(RUN) notebooks/upkeep.py --pictures

format: .venv/.installed ## format code; clean what stored notebooks need not keep
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
	find notebooks -name '*.ipynb' -exec .venv/bin/nbstripout --keep-output --keep-count \
	  --extra-keys 'metadata.papermill metadata.widgets cell.metadata.papermill' {} +

clean: ## remove what runs leave behind; .venv stays
	rm -rf build .benchmarks .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find psic_core tests -name __pycache__ -prune -exec rm -rf {} +

# The stamp is touched last: an installation that was cut short is taken up again.
.venv/.installed: pyproject.toml install.py
	@usable='$(USABLE)'; \
	$(RUN) -c "$$usable" 2>/dev/null && exit; \
	for python in $(PYTHON); do \
	  "$$python" -c "$$usable" 2>/dev/null || continue; \
	  echo "making .venv with $$python"; \
	  exec "$$python" -m venv --clear .venv; \
	done; \
	echo "PSIC needs CPython 3.10 to 3.13 with its venv module (Debian, Ubuntu: apt install python3-venv);" >&2; \
	echo "none among: $(PYTHON). Install one, or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
	exit 1
	$(RUN) install.py lab test tested
	@touch $@
