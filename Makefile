# Every target sets up what it needs. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

MODEL ?= models/tiny-mixtral
PRECISION ?= int8
RUNTIME ?= auto
GPU ?= auto
CHECKPOINT ?= checkpoints/$(notdir $(patsubst %/,%,$(MODEL)))-$(PRECISION)
ENGINE ?= engines/default
PROMPT ?= Once upon a time
SERVE_FLAGS ?=

# Inside NVIDIA's image its own environment is used: TensorRT-LLM sits there, and Triton's stub follows PATH.
IN_IMAGE := $(wildcard /opt/tritonserver)
VENV := $(if $(IN_IMAGE),,.venv)
BIN := $(if $(VENV),$(VENV)/bin/,)
READY := $(if $(VENV),$(VENV)/.ready,/tmp/mixtral-triton.ready)

.PHONY: help demo engine serve stream test lint format docs bench bench-build clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml scripts/setup_environment.sh
	@scripts/setup_environment.sh "$(VENV)"
	@touch $@

demo: $(READY)  ## Build the demo engine, serve it, stream a story and a chat answer, stop.
	@$(BIN)python scripts/demo.py

engine: $(CHECKPOINT)/config.json  ## Build ENGINE from MODEL (PRECISION=int8|fp8|awq|16bit RUNTIME=auto GPU=auto).
	@$(BIN)mixtral-build engine "$(CHECKPOINT)" "$(ENGINE)" --runtime $(RUNTIME) --gpu $(GPU) --replace

# Quantised again when the weights are newer than the checkpoint.
$(CHECKPOINT)/config.json: $(wildcard $(MODEL)/*.safetensors) | $(READY)
	@rm -rf "$(CHECKPOINT)"
	@$(BIN)mixtral-build quantize "$(MODEL)" "$(CHECKPOINT)" --precision $(PRECISION)

serve: $(READY)  ## Serve ENGINE with Triton until Ctrl-C.
	@exec $(BIN)python scripts/serve.py --engine "$(ENGINE)" $(SERVE_FLAGS)

stream: $(READY)  ## Stream a completion of PROMPT from the running server.
	@$(BIN)mixtral stream "$$PROMPT"
stream: export PROMPT := $(PROMPT)

test: lint  ## Lint, types and all tests, the real server included.
	@$(BIN)python -m pytest

lint: $(READY)  ## ruff and mypy.
	@$(BIN)ruff check .
	@$(BIN)ruff format --check .
	@$(BIN)mypy

format: $(READY)  ## Format the code.
	@$(BIN)ruff check --fix .
	@$(BIN)ruff format .

docs: $(READY)  ## Regenerate the help pages in docs/.
	@$(BIN)python scripts/generate_docs.py

bench: $(READY)  ## Measure decode speed beside transformers, and each precision's quality, on the demo model.
	@$(BIN)python benchmarks/decode.py
	@$(BIN)python benchmarks/quality.py

bench-build: $(READY)  ## Measure quantising two layers of 8x7B's shape: speed beside a plain copy, and memory.
	@$(BIN)python benchmarks/build.py

clean:  ## Remove environment, engines, checkpoints and caches. Sources, `build/` among them, stay.
	rm -rf .venv engines checkpoints .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
