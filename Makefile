# Two commands for a fresh machine: `make demo` installs and runs the main job, `make test` installs and runs all tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PARTS  := ./core ./cli $(patsubst %/,./%,$(sort $(dir $(wildcard plugins/*/pyproject.toml))))
EDITABLE := $(foreach part,$(PARTS),-e $(part))
# one thread a process: two cores are shared by tests that start processes of their own
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# of the last `make test`, in JUnit's form
REPORT := build/tests.xml

.PHONY: demo test test-times docs bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml $(addsuffix /pyproject.toml,$(PARTS))
	$(BIN)/pip install --quiet --progress-bar off $(EDITABLE) -e .
	@touch $@

$(VENV)/.tests-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet --progress-bar off $(EDITABLE) -e ".[all,test]"
	@touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet --progress-bar off $(EDITABLE) -e ".[docs]"
	@touch $@

demo: $(VENV)/.installed  ## install, then train one network with chase and fairsam woven, and show the result
	rm -rf .demo
	$(ONE_THREAD) $(BIN)/plait plan examples/demo.toml
	$(ONE_THREAD) $(BIN)/plait run examples/demo.toml --out .demo

test: $(VENV)/.tests-installed  ## install, then lint, type-check and run every test but the slow experiments
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy $(addsuffix /src,$(PARTS)) examples/*/src
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --junitxml $(REPORT)

test-times:  ## print the seconds of every package and file in the last `make test`, the slowest first
	@$(BIN)/python tests/times.py $(REPORT)

docs: $(VENV)/.docs-installed  ## build the documentation site into build/site (a warning is an error)
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.tests-installed  ## print every benchmark (a quiet machine, please)
	$(ONE_THREAD) $(BIN)/python benchmarks/all.py

clean:
	rm -rf .demo .venv build dist
