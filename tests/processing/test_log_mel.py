"""Whisper's log-mel features with a running maximum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import compose, make_tokenizer
from transformers import WhisperFeatureExtractor

from llm_asr import LlmAsrProcessor
from llm_asr.processing.log_mel import StreamingLogMel, extract_running_log_mel


def noise(num_samples, loudness=0.1):
    return (loudness * np.random.default_rng(0).standard_normal(num_samples)).astype("float32")


@pytest.fixture(scope="module")
def extractor():
    return WhisperFeatureExtractor(feature_size=80)


def whisper_features(extractor, waveform):
    features = extractor(waveform, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
    return features["input_features"][0][:, features["attention_mask"][0].bool()]


def test_without_clipping_the_features_are_whispers(extractor):
    waveform = noise(20_000)
    features, mask = extract_running_log_mel(extractor, [waveform])
    assert mask.sum() == 125
    torch.testing.assert_close(features[0], whisper_features(extractor, waveform), rtol=1e-4, atol=1e-4)


def test_frames_do_not_know_what_comes_after_them(extractor):
    """A loud end raises the clipping of the whole recording, but only of its end with a running maximum."""
    start = np.concatenate([noise(8000, 1e-2), noise(8000, 1e-5)])
    whole = np.concatenate([start, noise(8000, 10.0)])
    alone, together = (extract_running_log_mel(extractor, [waveform])[0][0] for waveform in (start, whole))
    # Frame 98 is the last one whose window ends before sample 16,000.
    assert torch.equal(together[:, :99], alone[:, :99])
    assert (whisper_features(extractor, whole)[:, 60:98].mean() - together[:, 60:98].mean()).item() > 0.1
    # After the loudest frame, the maximum is that of the recording.
    loudest = int(together.amax(0).argmax())
    torch.testing.assert_close(
        together[:, loudest:], whisper_features(extractor, whole)[:, loudest:], rtol=1e-4, atol=1e-4
    )
    assert loudest < 145


@settings(max_examples=30)
@given(num_samples=st.integers(1, 4000), cuts=st.lists(st.integers(0, 4000), max_size=10))
def test_any_cut_gives_the_same_features(extractor, num_samples, cuts):
    # Louder and then so quiet that the maximum of an earlier block clips the features.
    loudness = 10 ** np.interp(np.arange(num_samples), [0, num_samples / 4, num_samples], [-3, 0, -7])
    waveform = (noise(num_samples) * loudness).astype("float32")
    expected = extract_running_log_mel(extractor, [waveform])[0][0]
    assert expected.shape == (80, -(-num_samples // 160))
    streaming = StreamingLogMel(extractor)
    blocks = np.split(waveform, sorted(min(cut, num_samples) for cut in cuts))
    pieces = [streaming.push(block) for block in blocks]
    heard = 0
    for block, count in zip(blocks, torch.tensor([piece.shape[1] for piece in pieces]).cumsum(0), strict=True):
        heard += len(block)
        # As soon as 12.5 ms after its centre are known.
        assert count == max(0, (heard - 200) // 160 + 1 if heard > 200 else 0)
    pieces.append(streaming.push(np.empty(0, np.float32), is_last=True))
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-5, atol=1e-5)


def test_the_option_is_saved_with_the_processor_and_acts(parts, tmp_path):
    _, processor = compose(parts, "conv", encoder_attention="chunked")
    processor.save_pretrained(tmp_path)
    loaded = LlmAsrProcessor.from_pretrained(tmp_path)
    assert loaded.log_mel_maximum == "running"
    waveforms = [noise(8000), np.concatenate([noise(16000, 1e-5), noise(5000)])]
    features, mask = loaded(audio=waveforms).values()
    expected, _ = extract_running_log_mel(loaded.feature_extractor, waveforms)
    assert torch.equal(features, expected)
    assert mask.sum(-1).tolist() == [50, 132]
    padded, longer = loaded(audio=waveforms, audio_padding="max_length").values()
    assert padded.shape == (2, 16, 300)
    assert torch.equal(padded[..., :132], features)
    assert torch.equal(longer.sum(-1), mask.sum(-1))
    _, plain = compose(parts, "conv")
    assert plain.log_mel_maximum == "recording"
    assert not torch.allclose(plain(audio=waveforms)["input_features"], features, atol=1e-2)


def test_wrong_settings_are_refused(parts):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|audio|>"]})
    with pytest.raises(ValueError, match="`log_mel_maximum` must be one of .*'recording', 'running'.*, got 'past'"):
        LlmAsrProcessor(WhisperFeatureExtractor(), tokenizer, log_mel_maximum="past")
    with pytest.raises(ValueError, match="set `dither` of the feature extractor to zero"):
        LlmAsrProcessor(WhisperFeatureExtractor(dither=0.1), tokenizer, log_mel_maximum="running")
    with pytest.raises(
        ValueError, match="is for Whisper's feature extractor, and this one is a ParakeetFeatureExtractor"
    ):
        LlmAsrProcessor.from_audio_text_pretrained(parts["parakeet"], parts["qwen2"], log_mel_maximum="running")
    model, _ = compose(parts, "conv", encoder_attention="chunked")
    _, processor = compose(parts, "conv")
    with pytest.raises(ValueError, match="pass `log_mel_maximum='running'` to the processor"):
        processor.check_model(model.config)
