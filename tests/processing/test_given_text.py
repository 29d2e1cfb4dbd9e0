"""Times of the words of a given text: `LlmAsrProcessor.align` and `pipeline(..., text=...)`."""

import numpy as np
import pytest
import torch
from tiny_models import compose

from llm_asr import LlmAsrPipeline
from llm_asr.processing.given_text import count_unit_tokens
from llm_asr.processing.timestamps import place_words


PERIOD = 0.04


@pytest.fixture(scope="module")
def model_and_processor(parts):
    return compose(parts, "cif")


@pytest.fixture(scope="module")
def processor(model_and_processor):
    return model_and_processor[1]


@pytest.fixture(scope="module")
def aligner(model_and_processor):
    model, processor = model_and_processor
    return LlmAsrPipeline(model, processor=processor)


def speak(counts, rng, error=0.1, pause=3):
    """CIF weights of words with `counts` tokens, each wrong by about `error`, and the first and last frame of each word."""
    alphas, spans = [np.zeros(pause)], []
    for count in counts:
        length = int(rng.integers(3, 6)) * max(1, round(count))
        first = sum(map(len, alphas))
        spans.append((first, first + length))
        alphas += [np.full(length, max(0.3, count + error * rng.standard_normal()) / length), np.zeros(pause)]
    return np.concatenate(alphas), spans


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("uno dos  tres\ncuatro", ["uno", "dos", "tres", "cuatro"]),
        (" çüé <|im_end|> ", ["çüé", "<|im_end|>"]),
        ("中文字 one", ["中", "文", "字", "one"]),
        ("uno, (dos) uno.", ["uno,", "(dos)", "uno."]),
    ],
)
def test_units_and_tokens_of_a_text(processor, text, units):
    found, counts = count_unit_tokens(processor.tokenizer, text)
    assert found == units
    ids = processor.tokenizer(text.rstrip(), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert sum(counts) == pytest.approx(len(ids), abs=1)
    assert min(counts) > 0
    if text.startswith("uno dos"):
        assert counts[0] == len(processor.tokenizer("uno")["input_ids"])


def test_words_that_share_a_token_have_equal_shares():
    class Tokenizer:
        is_fast = True

        def __call__(self, text, **kwargs):
            return {"offset_mapping": [(0, 2), (2, 3), (3, 4), (4, 5)]}

    assert count_unit_tokens(Tokenizer(), "中文 ab") == (["中", "文", "ab"], [0.5, 0.5, 3.0])


def test_known_weights_give_known_times_and_confidence(processor):
    text = "uno cuatro dos"
    _, counts = count_unit_tokens(processor.tokenizer, text)
    alphas, spans = speak([counts[0], counts[1] / 2, counts[2]], np.random.default_rng(0), error=0.0)
    found = processor.align(text, torch.tensor(alphas), PERIOD)
    assert [word["text"] for word in found] == text.split()
    assert [word["timestamp"][0] for word in found] == pytest.approx([first * PERIOD for first, _ in spans])
    assert found[-1]["timestamp"][1] == pytest.approx(spans[-1][1] * PERIOD)
    assert [word["confidence"] for word in found] == pytest.approx([1.0, 0.5, 1.0])


def test_a_long_recording_is_aligned_across_its_segments():
    """A thousand words in fifty segments, with pauses of a second between them."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, 1000).astype(float).tolist()
    rows, starts, expected, position = [], [], [], 5.0
    for first in range(0, 1000, 20):
        alphas, spans = speak(counts[first : first + 20], rng, error=0.25)
        expected += [(position + start * PERIOD, position + end * PERIOD) for start, end in spans]
        starts.append(position)
        rows.append(np.concatenate([alphas, np.zeros(7)]))  # padding of a batch
        position += len(alphas) * PERIOD + 1.0
    words = place_words(counts, rows, starts, PERIOD)
    errors = [abs(word.start - start) for word, (start, _) in zip(words, expected, strict=True)]
    assert np.mean(np.array(errors) < 1e-3) > 0.98
    assert max(word.end - end for word, (_, end) in zip(words, expected, strict=True)) < 1.0
    flat = [edge for word in words for edge in (word.start, word.end)]
    assert flat == sorted(flat)


def test_words_have_a_positive_duration_if_there_are_enough_frames():
    words = place_words([1.0] * 10, [np.r_[np.full(5, 2.0), np.full(30, 0.001)]], [0.0], 1.0)
    assert min(word.end - word.start for word in words) > 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"text": " "}, ValueError, "`text` has no word"),
        ({"text": 3}, TypeError, "`text` must be a string"),
        ({"alphas": None}, ValueError, "`alphas` is None: only models with CIF"),
        ({"alphas": np.zeros(4)}, ValueError, "no weight above zero"),
        ({"alphas": [np.ones(4), np.ones(4)]}, ValueError, "start in seconds of each of the 2 segments"),
        ({"alphas": [np.ones(4), np.ones(4)], "starts": [2.0, 1.0]}, ValueError, "in order"),
    ],
)
def test_texts_that_cannot_be_aligned_are_refused_with_the_reason(processor, change, error, message):
    with pytest.raises(error, match=message):
        processor.align(**{"text": "uno", "alphas": np.ones(4), "frame_period": PERIOD, **change})


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="cannot be aligned with Slow"):
        count_unit_tokens(Slow(), "uno")


def test_the_pipeline_aligns_equally_alone_and_in_batches(aligner, recordings):
    model, processor = aligner.model, aligner.processor
    text = "uno dos tres"
    found = aligner(recordings[2], text=text, language="es")
    alphas = model.get_audio_features(**processor(audio=recordings[2])).alphas[0]
    assert found["text"] == text
    assert found["language"] == "Spanish"
    expected = processor.align(text, alphas.detach(), model.config.projector_frame_period)
    # The last frame ends after the recording.
    expected[-1]["timestamp"] = (expected[-1]["timestamp"][0], 2.1)
    assert found["chunks"] == expected
    assert aligner([recordings[0], recordings[2]], text=["one", text], batch_size=2)[1]["chunks"] == found["chunks"]
    assert aligner([recordings[0], recordings[2]], text=text)[1]["chunks"] == found["chunks"]


def test_a_recording_beyond_the_window_is_aligned_by_segment(aligner, recordings):
    """The tiny encoder has a window of three seconds."""
    gap = np.zeros(16000, np.float32)
    long = np.concatenate([recordings[2], gap, recordings[1], gap, recordings[2]])
    found = aligner(long, text="uno dos tres cuatro cinco one two three", batch_size=2)
    times = [edge for chunk in found["chunks"] for edge in chunk["timestamp"]]
    assert times == sorted(times)
    assert times[-1] <= len(long) / 16000
    assert times[-1] > 5


def test_alignment_does_not_run_the_language_model(aligner, recordings, monkeypatch):
    monkeypatch.setattr(aligner.model.model, "language_model", None)
    assert aligner(recordings[0], text="one")["chunks"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "numbers"}, "`prompt` has no effect with `text`"),
        ({"return_timestamps": True}, "`return_timestamps` has no effect"),
        ({"return_confidence": True}, "`return_confidence` has no effect"),
        ({"max_new_tokens": 8}, "`max_new_tokens` has no effect"),
        ({"generate_kwargs": {"num_beams": 2}}, "`num_beams` has no effect"),
        ({"text": ""}, "`text` has no word"),
        ({"text": ["one", "two"]}, "`text` has 2 entries"),
    ],
)
def test_the_pipeline_refuses_options_without_effect(aligner, recordings, options, message):
    with pytest.raises(ValueError, match=message):
        aligner(recordings[0], **{"text": "one", **options})


def test_silence_and_models_without_cif_are_refused(aligner, parts, recordings):
    with pytest.raises(ValueError, match="has no speech"):
        aligner(np.zeros(16000, np.float32), text="one")
    model, processor = compose(parts, "conv")
    with pytest.raises(ValueError, match="needs a projector with CIF .* this model's projector is 'conv'"):
        LlmAsrPipeline(model, processor=processor)(recordings[0], text="one")
