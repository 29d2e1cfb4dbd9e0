import numpy as np
import pytest
import torch
from tiny_models import compose

from llm_asr.processing.timestamps import align_words, join_segments, split_words


def bumps(*bumps_, num_frames=40):
    """Weights that are zero except in bumps of (first frame, last frame, sum)."""
    alphas = np.zeros(num_frames)
    for first, last, total in bumps_:
        alphas[first:last] = total / (last - first)
    return alphas


def test_words_start_with_their_weight_and_end_within_the_next_pause():
    alphas = bumps((4, 8, 2.0), (12, 20, 1.0), (30, 32, 3.0))
    times = align_words([2, 1, 3], alphas, 0.04)
    expected = [(4, 10), (12, 25), (30, 32)]
    assert np.allclose(times, 0.04 * np.array(expected))


def test_wrong_counts_do_not_move_a_boundary_away_from_its_pause():
    # The first word has less weight than its three tokens. The second word has more weight than its one token.
    alphas = bumps((4, 8, 2.4), (14, 20, 1.6))
    assert np.allclose(align_words([3, 1], alphas, 1.0), [(4, 11), (14, 20)])


def test_boundaries_follow_the_sums_of_weights_without_pauses():
    times = align_words([1, 3], np.full(20, 0.2), 1.0)
    assert np.allclose(times, [(0, 5), (5, 20)])


def test_times_are_monotone_for_any_weights():
    generator = np.random.default_rng(0)
    for _ in range(300):
        alphas = generator.random(generator.integers(1, 50)) ** 3
        counts = generator.integers(1, 5, generator.integers(1, 12)).tolist()
        flat = [time for word in align_words(counts, alphas, 1.0) for time in word]
        assert len(flat) == 2 * len(counts)
        assert flat == sorted(flat)
        assert flat[0] >= 0
        assert flat[-1] <= len(alphas)


def test_no_words_give_no_times_and_missing_weights_are_refused():
    assert align_words([], np.zeros(5), 1.0) == []
    with pytest.raises(ValueError, match="`alphas` has no weight"):
        align_words([1], np.zeros(5), 1.0)
    with pytest.raises(ValueError, match=r"`alphas` must have shape \(num_frames,\), got \(1, 5\)"):
        align_words([1], np.zeros((1, 5)), 1.0)


def test_segments_end_at_long_pauses():
    words = [
        {"text": "one", "timestamp": (0.0, 0.4)},
        {"text": "two", "timestamp": (0.6, 1.0)},
        {"text": "three", "timestamp": (1.9, 2.2)},
    ]
    assert join_segments(words, longest_pause=0.5) == [
        {"text": "one two", "timestamp": (0.0, 1.0)},
        {"text": "three", "timestamp": (1.9, 2.2)},
    ]
    assert words[0]["text"] == "one"
    assert join_segments([], 0.5) == []


def test_the_processor_counts_the_tokens_of_words(parts):
    _, processor = compose(parts, "cif")
    ids = processor.tokenizer("cuatro çüé one")["input_ids"]
    words, counts = split_words(processor.tokenizer, [*ids, processor.tokenizer.eos_token_id])
    assert words == ["cuatro", "çüé", "one"]
    assert sum(counts) == len(ids)
    assert counts[0] == len(processor.tokenizer("cuatro")["input_ids"])


def test_offsets_of_a_decoded_row(parts, recordings):
    model, processor = compose(parts, "cif")
    outputs = model.generate(
        **processor.apply_transcription_request(recordings), max_new_tokens=8, return_dict_in_generate=True
    )
    assert outputs.alphas.shape[0] == outputs.audio_lengths.shape[0] == 3
    assert outputs.fire_times.shape[0] == outputs.audio_lengths.sum()
    period = model.config.projector_frame_period
    assert period == pytest.approx(0.04)
    decoded = processor.decode(
        outputs.sequences[1], output_offsets="word", alphas=outputs.alphas[1], frame_period=period
    )
    assert decoded["text"] == processor.decode(outputs.sequences[1])
    assert [offset["text"] for offset in decoded["offsets"]] == decoded["text"].split()
    with pytest.raises(ValueError, match="`output_offsets` needs `alphas` and `frame_period`"):
        processor.decode(outputs.sequences[1], output_offsets=True)
    with pytest.raises(ValueError, match="`output_offsets` must be 'word', True or False, got 'char'"):
        processor.decode(outputs.sequences[1], output_offsets="char", alphas=torch.ones(3), frame_period=period)


def test_an_incomplete_end_of_several_words_is_counted(parts):
    """The text is a half character, a control character that separates words, and another half character."""
    _, processor = compose(parts, "cif")
    vocabulary = processor.tokenizer.get_vocab()
    # Names that byte-level tokenizers have for the bytes E4, 0D and B8.
    ids = [vocabulary[name] for name in ("\u00e4", "\u010d", "\u00b8")]
    words, counts = split_words(processor.tokenizer, ids)
    assert words == ["\N{REPLACEMENT CHARACTER}"] * 2
    assert counts == [1.5, 1.5]
