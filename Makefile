# Everything Darkroom's developers run. Needs Python 3.11 or newer, and make.
# The environment is made in .venv on first use; afterwards the stamps in it make a second call quick.

PYTHON ?= python3
VENV ?= .venv
# Other people's clients, for the server's tests.
CLIENTS ?= .venv-clients
# The oldest versions that pyproject.toml allows, for `make floors`.
FLOORS ?= .venv-floors
# For uv, such as `--override cpu.txt` with a CPU build of torch.
FLOORS_OPTIONS ?=
# Test processes; each computes with one thread.
WORKERS ?= 2
# Where `make demo` puts its picture.
OUT ?= out
PROMPT ?= a large fox on a yellow background

RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
SETUP := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test soak floors clients page page-pictures check format docs site pictures bench bench-smoke embedded clean

help:  ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | awk -F: '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.installed  ## Draw a picture with the embedded model, and print its path and the prompt
	@$(RUN) -m darkroom generate "$(PROMPT)" --seed 1 -o $(OUT)
	@echo "prompt: $(PROMPT)"

test: $(VENV)/.tested  ## Run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadfile

floors: $(FLOORS)/.installed  ## Run the tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest -n $(WORKERS) --dist loadfile

clients: $(CLIENTS)/.installed  ## Install other people's clients of the server, for its tests (without them, those are skipped)

page: page/node_modules/.installed  ## Check and build the server's page (needs node; what is built is kept in git)
	@[ ! -e $(VENV)/.tested ] || $(RUN) tools/page_types.py
	cd page && npm run --silent check && npm test --silent && npm run --silent build

page-pictures: $(VENV)/.tested  ## Write screenshots of the page's views into out/page, to be looked at (needs chromium)
	$(RUN) tools/page_pictures.py $(OUT)/page

soak: $(VENV)/.tested  ## Run the long forms of tests (an hour and more)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m soak

check: $(VENV)/.checked  ## Check format, lint, types (users' programs', too), imports between rooms, the documentation's code and site
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) tools/imports.py
	$(RUN) tools/check_types.py
	$(RUN) tools/run_docs.py
	$(RUN) tools/make_site.py --check --if-possible

format: $(VENV)/.checked  ## Put the code in its format, and fix what can be fixed
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

docs: $(VENV)/.installed  ## Run the documentation's code
	$(RUN) tools/run_docs.py

site: $(VENV)/.checked  ## Build the documentation's site, in build/site, from docs/ and the code
	$(RUN) tools/make_site.py

pictures: $(VENV)/.installed  ## Draw the documentation's pictures again (docs/pictures)
	$(RUN) tools/run_docs.py --keep-pictures
	$(RUN) tools/make_sheet.py

bench: $(VENV)/.tested  ## Measure this machine, side by side with diffusers (minutes)
	$(RUN) benchmarks/cold_start.py
	$(RUN) benchmarks/load.py
	$(RUN) benchmarks/overhead.py
	$(RUN) -m darkroom bench
	$(RUN) benchmarks/step.py --dtype bfloat16 --yardstick
	$(RUN) benchmarks/decode.py --dtype bfloat16 --yardstick
	$(RUN) benchmarks/attention.py
	$(RUN) benchmarks/profile_step.py --dtype bfloat16
	$(RUN) benchmarks/through_openvino.py
	$(RUN) benchmarks/sdcpp.py
	$(RUN) benchmarks/lora.py
	$(RUN) benchmarks/data.py
	$(RUN) benchmarks/train_step.py
	$(RUN) benchmarks/lossy.py --architecture sd15 --dtype bfloat16
	$(RUN) benchmarks/throughput.py
	$(RUN) benchmarks/together.py
	$(RUN) benchmarks/simulate.py

bench-smoke: export OMP_NUM_THREADS := 1
bench-smoke: $(VENV)/.tested  ## The same in seconds: that the benchmarks run, not what they say
	$(RUN) benchmarks/cold_start.py --rounds 1
	$(RUN) benchmarks/load.py --smoke
	$(RUN) benchmarks/overhead.py --smoke
	$(RUN) -m darkroom bench --architecture tiny --rounds 1
	$(RUN) benchmarks/step.py --architecture tiny --size 64 --rounds 2
	$(RUN) benchmarks/decode.py --smoke
	$(RUN) benchmarks/attention.py --smoke
	$(RUN) benchmarks/profile_step.py --architecture tiny --size 64 --rounds 1
	$(RUN) benchmarks/through_openvino.py --smoke
	$(RUN) benchmarks/sdcpp.py --smoke
	$(RUN) benchmarks/lora.py --smoke
	$(RUN) benchmarks/lossy.py --smoke
	$(RUN) benchmarks/data.py --smoke
	$(RUN) benchmarks/train_step.py --architecture tiny --size 64 --batch 4 --rounds 2
	$(RUN) benchmarks/memory.py --architecture tiny --size 64
	$(RUN) benchmarks/serve.py --smoke
	$(RUN) benchmarks/edges.py --count 1
	$(RUN) benchmarks/throughput.py --smoke
	$(RUN) benchmarks/together.py --smoke
	$(RUN) benchmarks/simulate.py --smoke
	$(RUN) benchmarks/gpu.py --smoke

embedded: $(VENV)/.installed  ## Train the embedded model from nothing (hours; interrupt and call again to go on)
	$(RUN) -m darkroom train embedded --output runs/embedded

page/node_modules/.installed: page/package.json page/package-lock.json
	npm ci --prefix page --ignore-scripts --silent --no-audit --no-fund
	@touch $@

clean:  ## Remove the environment and what tools left behind; runs/ and out/ stay
	rm -rf $(VENV) $(CLIENTS) $(FLOORS) page/node_modules build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Darkroom needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(SETUP)
	@echo "installing Darkroom into $(VENV) (the largest part is torch; a few minutes the first time)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(INSTALL) -e ".[test]"
	@touch $@

$(VENV)/.checked: $(VENV)/.installed
	$(INSTALL) -e ".[dev]"
	@touch $@

$(FLOORS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(FLOORS)/bin/uv pip install --quiet --python $(FLOORS) --resolution lowest-direct $(FLOORS_OPTIONS) -r pyproject.toml --extra test
	$(FLOORS)/bin/uv pip install --quiet --python $(FLOORS) --no-deps -e .
	@touch $@

$(CLIENTS)/.installed: $(addprefix tests/serve/clients/,requirements.txt package.json package-lock.json)
	$(PYTHON) -m venv $(CLIENTS)
	cp tests/serve/clients/package*.json $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check -r tests/serve/clients/requirements.txt
	npm ci --prefix $(CLIENTS) --silent --no-audit --no-fund
	@touch $@
