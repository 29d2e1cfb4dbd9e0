"""The encoders of published speech language models give the hidden states that the models in Transformers give."""

import numpy as np
import pytest
import torch
import transformers
from tiny_models import compose
from tiny_speech_encoders import reason_of_absence, save_tiny_speech_encoder
from transformers import AutoConfig


# The tiny checkpoints have windows of 3 s.
WINDOW_S = 3


def family(name):
    reason = reason_of_absence(name)
    return pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason))


@pytest.fixture
def load(parts, tmp_path):
    """Loads the encoder of a model in Transformers, and our model with its processor."""

    def load(name):
        folder = str(tmp_path / name)
        save_tiny_speech_encoder(name, folder)
        source_class = getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0])
        source = source_class.from_pretrained(folder).eval()
        model, processor = compose({**parts, name: folder}, "conv", audio=name)
        # Its name depends on the version of Transformers.
        tower = next(module for path, module in source.named_modules() if path.endswith("audio_tower"))
        return tower, model, processor

    return load


def make_recordings(*seconds):
    generator = np.random.default_rng(0)
    return [(0.1 * generator.standard_normal(int(16000 * length))).astype("float32") for length in seconds]


@pytest.mark.parametrize("name", [family(name) for name in ("voxtral", "qwen2-audio", "audioflamingo3", "glmasr")])
@torch.no_grad()
def test_whole_windows(load, name):
    tower, model, processor = load(name)
    inputs = processor(audio=make_recordings(WINDOW_S, WINDOW_S))
    features, mask = inputs["input_features"], inputs["input_features_mask"]
    options = {"input_features_mask": mask} if name == "audioflamingo3" else {}
    expected = tower(features, **options).last_hidden_state
    hidden_states, frame_mask = model.model.get_audio_hidden_states(features, mask)
    assert frame_mask.all()
    torch.testing.assert_close(hidden_states, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [family("voxtral"), family("glmasr")])
@torch.no_grad()
def test_short_recordings_that_are_filled_up_with_silence(load, name):
    """The processors of these families fill recordings up to a window, and the encoders attend to the silence."""
    tower, model, processor = load(name)
    recordings = make_recordings(0.4, 1.3, 2.1)
    inputs = processor.feature_extractor(
        recordings, sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    expected = tower(inputs.input_features).last_hidden_state
    filled = processor(audio=recordings, audio_padding="max_length")["input_features"]
    hidden_states, _ = model.model.get_audio_hidden_states(
        filled, filled.new_ones(filled.shape[0], filled.shape[2], dtype=torch.long)
    )
    torch.testing.assert_close(hidden_states, expected, rtol=1e-5, atol=1e-5)
    # Without the silence, hidden states are others.
    alone = processor(audio=recordings)
    others, mask = model.model.get_audio_hidden_states(alone["input_features"], alone["input_features_mask"])
    assert (others - expected[:, : others.shape[1]])[mask].abs().max() > 1e-2


@pytest.mark.parametrize("name", [family("qwen3-asr")])
@torch.no_grad()
def test_recordings_of_qwen3_asr_one_by_one(load, name):
    tower, model, processor = load(name)
    recordings = make_recordings(0.4, 1.3, 2.1)
    together = processor(audio=recordings)
    hidden_states, mask = model.model.get_audio_hidden_states(
        together["input_features"], together["input_features_mask"]
    )
    for row, real, recording in zip(hidden_states, mask, recordings, strict=True):
        inputs = processor.feature_extractor(
            recording, sampling_rate=16000, padding=True, return_attention_mask=True, return_tensors="pt"
        )
        frames = inputs["input_features"]
        given = inputs.get("input_features_mask", inputs.get("attention_mask"))
        expected = tower(frames, input_features_mask=given).last_hidden_state
        torch.testing.assert_close(row[real], expected.reshape(-1, expected.shape[-1]), rtol=1e-5, atol=1e-5)
