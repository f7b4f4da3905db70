# Two commands matter: `make demo` and `make test`. Both build .venv first, once.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
# Where torch comes from: CPU wheels, unless a GPU is seen. TORCH_INDEX=... decides otherwise.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: demo test proofs bench bench-peers lint notebooks clean
.DELETE_ON_ERROR:

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --retries 1 --no-deps "$(TORCH)" $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/interp demo -o runs/demo

test: $(VENV)/.ready lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 -m "not proof"
	$(MAKE) --no-print-directory notebooks

notebooks: $(VENV)/.ready
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=120 notebooks

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proofs: $(VENV)/.ready
	$(BIN)/python -m tests.proofs

bench: $(VENV)/.ready bench-peers
	$(BIN)/python -m benchmarks

# Each library we compare with lives in an environment of its own, with the torch that we use. tracr (JAX) is on no index:
# `benchmarks.rasp` takes a checkout, its environment has what that imports.
bench-peers: $(patsubst benchmarks/peers/%.txt,.bench/%/.ready,$(wildcard benchmarks/peers/*.txt))

.bench/dictionary_learning/.ready: ALONE := dictionary-learning==0.1.0
.bench/tracr/.ready: TORCH :=

.bench/%/.ready: benchmarks/peers/%.txt
	test -x .bench/$*/bin/python || $(PYTHON) -m venv .bench/$*
	$(if $(TORCH),.bench/$*/bin/pip install --quiet --retries 1 --no-deps "$(TORCH)" $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)))
	.bench/$*/bin/pip install --quiet -r $<
	$(if $(ALONE),.bench/$*/bin/pip install --quiet --no-deps $(ALONE))
	touch $@

clean:
	rm -rf $(VENV) .bench runs build *.egg-info
