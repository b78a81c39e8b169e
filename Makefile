# Every target sets up what it needs. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

MODEL ?= models/tiny-mixtral
PRECISION ?= int8
RUNTIME ?= auto
GPU ?= auto
PRESET ?= latency
TP ?= 1
CHECKPOINT ?= checkpoints/$(notdir $(patsubst %/,%,$(MODEL)))-$(PRECISION)$(if $(filter-out 1,$(TP)),-tp$(TP))
ENGINE ?= engines/default
PROMPT ?= Once upon a time
SERVE_FLAGS ?=
GATEWAY_PORT ?= 9000
PEERS_FLAGS ?=
SOAK_FLAGS ?=
FUZZ_SECONDS ?= 600
BENCH_FLAGS ?=
GPU_FLAGS ?=
GPU_CHECK_FLAGS ?=
GPU_CHECK_SECONDS ?= 140
GPU_SECONDS ?= 380

# Inside NVIDIA's image its own environment is used: TensorRT-LLM sits there, and Triton's stub follows PATH.
IN_IMAGE := $(wildcard /opt/tritonserver)
VENV := $(if $(IN_IMAGE),,.venv)
BIN := $(if $(VENV),$(VENV)/bin/,)
READY := $(if $(VENV),$(VENV)/.ready,$(or $(MIXTRAL_READY),/tmp/mixtral-triton.ready))

# The order that TensorRT-LLM's int8 kernels read, where the GPU is named; else `mixtral-build engine` converts.
KERNEL_LAYOUT := $(if $(filter a100,$(GPU)),sm80,$(if $(filter h100 h200,$(GPU)),sm90))
LAYOUT ?= $(if $(filter int8-tensorrt-llm,$(PRECISION)-$(RUNTIME)),$(KERNEL_LAYOUT))

# Only what our own script has built: another compiler's may crash. The script leaves the note that is looked for.
LLAMA_CPP = $(BIN)python3 -c 'import llama_cpp, pathlib; pathlib.Path(llama_cpp.__file__).with_name("compiler.txt").stat()' \
	2>/dev/null || benchmarks/peers/install.sh $(BIN)python3

# Tests that start no server share the machine; those of `tests/system` and `tests/benchmarks` have it to themselves.
SERVERLESS := $(addprefix tests/,build client deploy gateway models runtime scripts serving)

IMAGE ?= mixtral-triton
BUILD_FLAGS ?=
CONTAINER_FLAGS ?=
CHECK_FLAGS ?=
REPORT ?= engines/container-check.json

.PHONY: help demo engine serve stream test test-external soak fuzz lint format docs bench bench-streaming bench-decode bench-build \
	bench-text bench-generator bench-gateway bench-quality bench-presets bench-peers bench-engine bench-faults bench-aiperf gpu-check \
	clean \
	image image-cpu container-engine container-serve check-container

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml scripts/setup_environment.sh
	@scripts/setup_environment.sh "$(VENV)"
	@touch $@

demo: $(READY)  ## Build the demo engine, serve it, stream a story and a chat answer, stop.
	@$(BIN)python3 scripts/demo.py

engine: $(CHECKPOINT)/config.json  ## Build ENGINE from MODEL (PRECISION=int8|fp8|awq|16bit RUNTIME=auto GPU=auto PRESET=latency TP=1).
	@$(BIN)mixtral-build engine "$(CHECKPOINT)" "$(ENGINE)" --runtime $(RUNTIME) --gpu $(GPU) --preset $(PRESET) --replace

# Quantised again when the weights are newer than the checkpoint.
$(CHECKPOINT)/config.json: $(wildcard $(MODEL)/*.safetensors) | $(READY)
	@rm -rf "$(CHECKPOINT)"
	@$(BIN)mixtral-build quantize "$(MODEL)" "$(CHECKPOINT)" --precision $(PRECISION) --tp-size $(TP) $(if $(LAYOUT),--layout $(LAYOUT))

serve: $(READY)  ## Serve ENGINE with Triton, and OpenAI's API on GATEWAY_PORT (9000, empty: not), until Ctrl-C.
	@exec $(BIN)python3 scripts/serve.py --engine "$(ENGINE)" $(if $(GATEWAY_PORT),--gateway-port $(GATEWAY_PORT)) $(SERVE_FLAGS)

# Docker or Podman; nothing else is needed on the machine.
image:  ## Build the image IMAGE of the TensorRT-LLM runtime (BUILD_FLAGS="--build-arg BASE_IMAGE=...").
	@scripts/build_image.sh deploy/Dockerfile "$(IMAGE):latest" $(BUILD_FLAGS)

image-cpu:  ## Build an image that serves the demo model without a GPU.
	@scripts/build_image.sh deploy/Dockerfile.cpu "$(IMAGE):cpu" $(BUILD_FLAGS)

container-engine:  ## Build ENGINE from MODEL with TensorRT-LLM inside the image (CUDA_VISIBLE_DEVICES, else GPU 0).
	@python3 scripts/run_container.py --image "$(IMAGE):latest" --gpus $(TP) $(CONTAINER_FLAGS) engine "$(MODEL)" "$(ENGINE)" \
	  PRECISION=$(PRECISION) GPU=$(GPU) PRESET=$(PRESET) TP=$(TP)

check-container: $(READY)  ## Inside the image: is TensorRT-LLM here what this was written for? (report: REPORT=engines/container-check.json)
	@$(BIN)python3 scripts/check_container.py --json "$(REPORT)" $(CHECK_FLAGS)

container-serve:  ## Serve ENGINE inside the image, on loopback, until Ctrl-C.
	@exec python3 scripts/run_container.py --image "$(IMAGE):latest" --gpus $(TP) $(CONTAINER_FLAGS) serve "$(ENGINE)" $(SERVE_FLAGS)

stream: $(READY)  ## Stream a completion of PROMPT from the running server.
	@$(BIN)mixtral stream "$$PROMPT"
stream: export PROMPT := $(PROMPT)

test: lint  ## Lint, types and all tests, the real server included.
	@$(BIN)python3 -m pytest --numprocesses 2 --dist worksteal $(SERVERLESS)
	@$(BIN)python3 -m pytest $(addprefix --ignore ,$(SERVERLESS))

test-external: $(READY)  ## Check our files with other people's programs, which it fetches: Prometheus, Chromium, AIPerf, lm_eval.
	@scripts/setup_external_tools.sh
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(BIN)python3 -m pytest tests/external

soak: $(READY)  ## Mixed traffic for 15 minutes: every token checked, nothing may grow (SOAK_FLAGS="--minutes 60 --engine DIR").
	@PYTHONPATH=benchmarks:benchmarks/synthetic $(BIN)python3 benchmarks/soak/run_soak.py $(SOAK_FLAGS)

fuzz: $(READY)  ## Random requests to every tensor of every model for FUZZ_SECONDS.
	@MIXTRAL_FUZZ_S=$(FUZZ_SECONDS) $(BIN)python3 -m pytest -s tests/system/test_fuzz.py

lint: $(READY)  ## ruff and mypy.
	@$(BIN)ruff check .
	@$(BIN)ruff format --check .
	@$(BIN)mypy

format: $(READY)  ## Format the code.
	@$(BIN)ruff check --fix .
	@$(BIN)ruff format .

docs: $(READY)  ## Regenerate the pages in docs/ that come from help texts and results.
	@$(BIN)python3 scripts/generate_docs.py
	@$(BIN)python3 benchmarks/quality_page.py
	@$(BIN)python3 benchmarks/engine_page.py
	@$(BIN)python3 benchmarks/performance_page.py
	@$(BIN)python3 benchmarks/streaming_page.py

bench:  ## bench-streaming, -decode, -engine, -build, -generator and -quality, one after another (short: BENCH_FLAGS="--rounds 1").
	@$(MAKE) bench-streaming
	@$(MAKE) bench-decode
	@$(MAKE) bench-engine
	@$(MAKE) bench-build
	@$(MAKE) bench-generator
	@$(MAKE) bench-quality

bench-streaming: $(READY)  ## Measure the streaming path beside a plain ensemble (BENCH_FLAGS="--nvidia CHECKOUT": and NVIDIA's models).
	@PYTHONPATH=benchmarks/synthetic $(BIN)python3 benchmarks/streaming.py $(BENCH_FLAGS)
	@$(BIN)python3 benchmarks/performance_page.py
	@$(BIN)python3 benchmarks/streaming_page.py

bench-decode: $(READY)  ## Measure decode speed of the PyTorch engine beside transformers, on the demo model.
	@$(BIN)python3 benchmarks/decode.py $(BENCH_FLAGS)
	@$(BIN)python3 benchmarks/performance_page.py

bench-build: $(READY)  ## Measure quantising two layers of 8x7B's shape: speed beside a plain copy, and memory.
	@$(BIN)python3 benchmarks/build.py $(BENCH_FLAGS)
	@$(BIN)python3 benchmarks/performance_page.py

bench-text: $(READY)  ## Measure detokenizer and tokenizer by themselves: cost per token, and who waits for whom.
	@$(BIN)python3 benchmarks/detokenizer.py $(BENCH_FLAGS)
	@$(BIN)python3 benchmarks/tokenizer.py $(BENCH_FLAGS)
	@$(BIN)python3 benchmarks/streaming_page.py

bench-generator: $(READY)  ## Measure what the load generator of `mixtral bench` carries itself.
	@$(BIN)python3 benchmarks/load_generator.py $(BENCH_FLAGS)
	@$(BIN)python3 benchmarks/performance_page.py

bench-engine: $(READY)  ## Measure the PyTorch engine on this CPU beside llama.cpp, transformers and the memory's speed.
	@$(LLAMA_CPP)
	@$(BIN)python3 benchmarks/engine.py $(BENCH_FLAGS)
	@$(BIN)python3 benchmarks/engine_page.py
	@$(BIN)python3 benchmarks/performance_page.py

bench-gateway: $(READY)  ## Measure the OpenAI gateway beside direct gRPC: processor time a chunk, throughput, latency.
	@PYTHONPATH=benchmarks/synthetic $(BIN)python3 benchmarks/gateway.py $(BENCH_FLAGS)
	@$(BIN)python3 benchmarks/performance_page.py

bench-faults: $(READY)  ## Break servers in every way of the tests and write what clients saw into docs/reliability.md.
	@$(BIN)python3 benchmarks/faults.py

bench-aiperf: $(READY)  ## Measure the gateway with NVIDIA's AIPerf beside `mixtral bench`, into docs/benchmarking.md.
	@scripts/setup_external_tools.sh
	@PYTHONPATH=benchmarks/synthetic $(BIN)python3 benchmarks/aiperf_agreement.py $(BENCH_FLAGS)

bench-quality: $(READY)  ## Measure each precision's quality on the demo model, from the weights and through a server.
	@$(BIN)python3 benchmarks/quality.py
	@$(BIN)python3 benchmarks/served_quality.py
	@$(BIN)python3 benchmarks/quality_page.py

bench-presets: $(READY)  ## Run every preset of `mixtral bench` on the served demo model, with pictures.
	@$(BIN)python3 benchmarks/presets.py $(BENCH_FLAGS)
	@$(BIN)python3 benchmarks/performance_page.py

bench-peers: $(READY)  ## Measure our server beside transformers, llama.cpp (built on first use) and vLLM on a GPU.
	@$(LLAMA_CPP)
	@PYTHONPATH=benchmarks $(BIN)python3 -m peers.run $(PEERS_FLAGS)
	@$(BIN)python3 benchmarks/performance_page.py

# Where the machine's own python3 has PyTorch with CUDA, it is used as it is and nothing is installed. The programs need
# no other package than those that come with it. The check's failure does not keep the benchmark from running.
gpu-check:  ## On a CUDA machine: are the kernels right, and how fast (GPU_FLAGS="--precision int8 --part kernels")? Nine minutes.
	@if python3 -c 'import sys, torch, triton, numpy, psutil, safetensors; sys.exit(not torch.cuda.is_available())' 2>/dev/null; \
	then python=python3; else $(MAKE) "$(READY)"; python=$(BIN)python3; fi; \
	export PYTHONPATH=runtime:client:benchmarks; result=0; \
	$$python benchmarks/gpu_check.py --seconds $(GPU_CHECK_SECONDS) $(GPU_CHECK_FLAGS) || result=$$?; \
	$$python benchmarks/gpu.py --seconds $(GPU_SECONDS) $(GPU_FLAGS) || result=$$?; \
	$$python benchmarks/performance_page.py 2>/dev/null || echo "docs/performance.md is written by: make docs" >&2; \
	exit $$result

clean:  ## Remove environment, engines, checkpoints and caches. Sources, `build/` among them, stay.
	rm -rf .venv .tools engines checkpoints .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
