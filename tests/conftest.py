"""Builds tiny random models, so that no test needs a network."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import numpy as np
import pytest
import torch
from tiny_models import (
    save_tiny_llama,
    save_tiny_parakeet,
    save_tiny_qwen2,
    save_tiny_wav2vec2_bert,
    save_tiny_whisper,
)
from tiny_speech_encoders import save_tiny_speech_encoder
from transformers import set_seed


# Every run uses the same examples, and no test depends on the speed of the machine.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")


@pytest.fixture(autouse=True)
def seeded():
    set_seed(0)
    # Several threads make such small models many times slower if another process uses a core.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Folders of tiny pretrained parts, by name."""
    root = tmp_path_factory.mktemp("parts")
    savers = {
        "whisper": save_tiny_whisper,
        "wav2vec2-bert": save_tiny_wav2vec2_bert,
        "parakeet": save_tiny_parakeet,
        "moonshine": lambda folder: save_tiny_speech_encoder("moonshine", folder),
        "qwen2": save_tiny_qwen2,
        "llama": save_tiny_llama,
        "qwen2-tied": lambda folder: save_tiny_qwen2(folder, tie_word_embeddings=True),
    }
    set_seed(0)
    folders = {}
    for name, save in savers.items():
        folders[name] = str(root / name)
        save(folders[name])
    return folders


@pytest.fixture
def recordings():
    """Three waveforms at 16 kHz, of 0.4, 1.3 and 2.1 seconds."""
    generator = np.random.default_rng(0)
    return [(0.1 * generator.standard_normal(int(16000 * seconds))).astype("float32") for seconds in (0.4, 1.3, 2.1)]
