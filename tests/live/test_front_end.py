"""Streams in chunks against the whole recording, for any cut into blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import compose

from llm_asr.live.front_end import StreamingFrontEnd, push_front_ends
from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES
from llm_asr.modeling.streaming_audio import batch_audio_outputs, join_audio_outputs


# 2.3 s.
NUM_SAMPLES = 36_800
TEN_MS = 160
GREEDY = {"min_new_tokens": 6, "max_new_tokens": 6}
EXACT = {"rtol": 1e-5, "atol": 1e-5}

CHUNKS = {"encoder_attention": "chunked", "encoder_chunk_s": 0.4, "encoder_left_context_s": 0.6}


def make_recording(num_samples=NUM_SAMPLES, seed=0):
    generator = np.random.default_rng(seed)
    # Between -120 dB and full scale, so that features after the loudest place are clipped.
    loudness = 10 ** np.interp(np.arange(num_samples), [0, num_samples / 2, num_samples], [-4.0, -0.5, -6.0])
    return (loudness * generator.standard_normal(num_samples)).astype("float32")


def cut_at(recording, cuts):
    return np.split(recording, sorted(cuts))


def random_cuts(seed, num_samples=NUM_SAMPLES):
    """Blocks of 10 ms and up, with several sizes in one recording."""
    generator = np.random.default_rng(seed)
    sizes = generator.choice([TEN_MS, 3 * TEN_MS + 7, 1600, 7000], size=num_samples // TEN_MS)
    return [end for end in sizes.cumsum() if end < num_samples]


@pytest.fixture(scope="module")
def chunked_model(parts):
    made = {}

    def make(projector_type="moe_cif", lookahead=0.06, **kwargs):
        key = (projector_type, lookahead, *sorted(kwargs.items()))
        if key not in made:
            options = {**CHUNKS, "encoder_lookahead_s": lookahead, **kwargs}
            made[key] = compose(parts, projector_type, **options)
        return made[key]

    return make


def encode_offline(model, processor, recording):
    inputs = processor(audio=recording)
    with torch.no_grad():
        return inputs, model.get_audio_features(**inputs)


def stream(model, processor, blocks):
    front_end = StreamingFrontEnd(model, processor)
    outputs = [front_end.push(block) for block in blocks]
    outputs.append(front_end.finish())
    return front_end, outputs


def assert_same(streamed, offline):
    for name in ("last_hidden_state", "alphas", "pooler_output", "fire_times"):
        assert (streamed.get(name) is None) == (offline.get(name) is None)
        if offline.get(name) is not None:
            torch.testing.assert_close(streamed[name], offline[name], **EXACT)
    for name in ("audio_lengths", "num_frames"):
        assert torch.equal(streamed[name], offline[name])


# A CTC head needs whole recordings.
@pytest.mark.parametrize("projector_type", [name for name in PROJECTOR_TYPES if "ctc" not in name])
@pytest.mark.parametrize("lookahead", [0.0, 0.06])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_stream_is_the_whole_recording(chunked_model, projector_type, lookahead, seed):
    model, processor = chunked_model(projector_type, lookahead)
    recording = make_recording()
    _, offline = encode_offline(model, processor, recording)
    assert offline.num_frames.item() == 115
    assert offline.audio_lengths.item() > 3
    front_end, pieces = stream(model, processor, cut_at(recording, random_cuts(seed)))
    # Embeddings come while the recording goes on.
    assert sum(len(piece.pooler_output) > 0 for piece in pieces[:-1]) > 2
    assert_same(front_end.audio_outputs, offline)
    assert_same(join_audio_outputs(pieces), offline)


@pytest.mark.parametrize("projector_type", ["cif", "stack", "moe_qformer"])
@settings(max_examples=15)
@given(
    num_samples=st.integers(400, NUM_SAMPLES),
    cuts=st.lists(st.integers(0, NUM_SAMPLES // TEN_MS), max_size=30),
    lookahead=st.sampled_from([0.0, 0.06, 0.5]),
)
def test_any_length_and_any_cut(chunked_model, projector_type, num_samples, cuts, lookahead):
    model, processor = chunked_model(projector_type, lookahead)
    recording = make_recording()[:num_samples]
    _, offline = encode_offline(model, processor, recording)
    blocks = cut_at(recording, [TEN_MS * cut for cut in cuts if TEN_MS * cut < num_samples])
    assert_same(stream(model, processor, blocks)[0].audio_outputs, offline)


def test_blocks_of_ten_milliseconds_and_tokens(chunked_model):
    """`generate` gives the same tokens for the embeddings of a stream."""
    model, processor = chunked_model()
    recording = make_recording()
    front_end, pieces = stream(model, processor, cut_at(recording, range(TEN_MS, NUM_SAMPLES, TEN_MS)))
    request = processor.apply_transcription_request(recording)
    expected = model.generate(**request, **GREEDY, return_dict_in_generate=True)
    prompt = {name: request[name] for name in ("input_ids", "attention_mask")}
    audio = front_end.audio_outputs
    streamed = model.generate(**prompt, audio_outputs=audio, **GREEDY, return_dict_in_generate=True)
    assert torch.equal(streamed.sequences, expected.sequences)
    torch.testing.assert_close(streamed.alphas, expected.alphas, **EXACT)
    # An embedding never comes later than the next chunk, its look-ahead, and what the convolutions wait for.
    limit = 2 * 0.4 + 0.06 + model.config.projector_lookahead_s
    for number, piece in enumerate(pieces[:-1], start=1):
        assert (0.01 * number - piece.fire_times < limit).all()


def test_streams_of_one_batch(chunked_model):
    """Streams at different places of their chunks, which end at different times."""
    model, processor = chunked_model()
    recordings = [make_recording(length, seed) for seed, length in enumerate((NUM_SAMPLES, 9_000, 21_111))]
    offline = [encode_offline(model, processor, recording)[1] for recording in recordings]
    front_ends = [StreamingFrontEnd(model, processor) for _ in recordings]
    sizes = (1_700, 700, 3_000)
    places = [0] * len(recordings)
    while open_rows := [row for row, one in enumerate(front_ends) if not one.state.is_finished]:
        ends = [places[row] + sizes[row] for row in open_rows]
        blocks = [recordings[row][places[row] : end] for row, end in zip(open_rows, ends, strict=True)]
        is_last = [end >= len(recordings[row]) for row, end in zip(open_rows, ends, strict=True)]
        push_front_ends([front_ends[row] for row in open_rows], blocks, is_last)
        for row, end in zip(open_rows, ends, strict=True):
            places[row] = end
    for front_end, expected in zip(front_ends, offline, strict=True):
        assert_same(front_end.audio_outputs, expected)
    request = processor.apply_transcription_request(recordings)
    batch = batch_audio_outputs([front_end.audio_outputs for front_end in front_ends])
    tokens = model.generate(
        input_ids=request["input_ids"], attention_mask=request["attention_mask"], audio_outputs=batch, **GREEDY
    )
    assert torch.equal(tokens, model.generate(**request, **GREEDY))


def test_memory_is_bounded_by_the_left_context(chunked_model):
    model, processor = chunked_model()
    front_end, _ = stream(model, processor, cut_at(make_recording(), random_cuts(0)))
    keys, values = front_end.state.encoder.left_context(0)
    assert keys.shape[1] == values.shape[1] == 30
    assert keys.untyped_storage().nbytes() == keys.nbytes


def test_what_cannot_be_streamed_is_refused(chunked_model, parts):
    model, processor = chunked_model()
    full, full_processor = compose(parts, "cif")
    with pytest.raises(ValueError, match="`encoder_attention` of the model is 'full'"):
        StreamingFrontEnd(full, full_processor)
    with pytest.raises(ValueError, match="`log_mel_maximum='running'`"):
        StreamingFrontEnd(model, full_processor)
    utterance, _ = chunked_model("moe_cif", routing_level="utterance")
    with pytest.raises(ValueError, match="`routing_level='utterance'` chooses experts by the whole recording"):
        StreamingFrontEnd(utterance, processor)
    model.train()
    with pytest.raises(ValueError, match=r"call `model.eval\(\)`"):
        StreamingFrontEnd(model, processor)
    model.eval()


def test_bad_blocks_are_refused_and_the_stream_goes_on(chunked_model):
    model, processor = chunked_model()
    recording = make_recording()
    front_end = StreamingFrontEnd(model, processor)
    front_end.push(recording[:9000])
    with pytest.raises(ValueError, match="NaN"):
        front_end.push(np.array([0.0, np.nan], np.float32))
    with pytest.raises(ValueError, match="different front ends"):
        push_front_ends([front_end, front_end], [recording[9000:], recording[9000:]])
    front_end.push(recording[9000:])
    front_end.finish()
    assert_same(front_end.audio_outputs, encode_offline(model, processor, recording)[1])
    with pytest.raises(ValueError, match="finished"):
        front_end.push(recording)
    long = StreamingFrontEnd(model, processor)
    with pytest.raises(ValueError, match="the speech encoder takes 300; begin another one"):
        long.push(np.tile(recording, 2))


def test_an_empty_stream_has_no_embeddings(chunked_model):
    model, processor = chunked_model()
    front_end = StreamingFrontEnd(model, processor)
    with pytest.raises(ValueError, match="no outputs yet"):
        _ = front_end.audio_outputs
    output = front_end.finish()
    assert output.audio_lengths.tolist() == output.num_frames.tolist() == [0]
    assert output.pooler_output.shape == (0, 40)
