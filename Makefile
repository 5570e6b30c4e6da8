# Everything below needs only python3 and make: the virtual environment is set up on first use.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Processes that run tests side by side; one thread each, since torch's threads wait for each other on busy cores.
WORKERS ?= 2
# What installs the packages. pip, since it heeds its own configuration: a mirror, a folder of wheels.
INSTALL ?= $(BIN)/python -m pip install --quiet
# How often `make soak` kills a run.
KILLS ?= 100

.PHONY: demo docs test coverage test-slow test-long newest resolve constraints image soak mutants check clean

# One thread: a model this small gains little from more, and loses ten times where other programs use the cores, too.
demo: $(VENV)/ready
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/glmtune demo

# A process that has nothing left to do takes tests from the others.
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# The same with the lines counted that they run, which takes half as long again; fails below the share that
# pyproject.toml names. Tests of what a template may do in a second are left out: they count its turns.
coverage: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --cov=glmtune --cov-report=term -k "not hostile_template"

# The demo, whole runs on real rows, several processes: what takes longer.
test-slow: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 15 -m "(slow or multi) and not gpu and not long"

# All of them: every cell of the matrix, every launcher, offload, two machines.
test-long: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m "(slow or multi) and not gpu"

# The tests that touch other libraries, with the newest that pyproject.toml allows: CI's third environment.
newest:
	.ci/newest install
	.ci/newest test

# Whether a fresh machine finds what the constraints pin, and others what pyproject.toml allows; installs nothing.
resolve: $(VENV)/ready
	VENV=$(VENV) .ci/resolve

# Writes .ci/constraints.txt anew: pins stay where they can; `UPGRADE=--upgrade` moves them, `UPGRADE='-P peft'` one.
constraints: $(VENV)/ready
	VENV=$(VENV) .ci/pin $(UPGRADE)

# Builds the image where docker works; elsewhere its commands install glmtune in a fresh environment.
image:
	.ci/image

# Kills a small run at random moments, and prints at the end what came of it. `SEED=` chooses the moments again, as far
# as a clock allows.
soak: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/soak.py --kills $(KILLS) $(if $(SEED),--seed $(SEED))

# Puts realistic mistakes into a copy of the package, one at a time: the tests must find them. `ONLY=loss` tries those in
# files whose path holds the word, `LINES='5 9'` those in lines of the list.
mutants: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants/run_mutants.py --workers $(WORKERS) $(if $(ONLY),--only $(ONLY)) $(if $(LINES),--lines $(LINES))

# The documentation as a site, into ./site; needs no network, and no page may have a link that leads nowhere.
docs: $(VENV)/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers $(WORKERS)

# torch comes first: DeepSpeed's setup looks for it.
$(VENV)/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint .ci/constraints.txt torch
	$(INSTALL) --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/docs-ready: $(VENV)/ready
	$(INSTALL) --constraint .ci/constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info
