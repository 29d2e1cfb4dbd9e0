"""Live transcription that encodes each frame once."""

import itertools

import numpy as np
import pytest
from tiny_models import compose

from llm_asr.live import stream as stream_module
from llm_asr.live.stream import LlmAsrStream, finish_together, push_together


RATE = 16000


def noise(seconds, seed):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(RATE * seconds))).astype("float32")


def silence(seconds):
    return np.zeros(int(RATE * seconds), "float32")


@pytest.fixture(scope="module")
def speech():
    """Three segments: 2.2 s with a short pause, 5 s, which is longer than the encoder's window of 3 s, and 0.4 s."""
    parts = (noise(1.2, 1), silence(0.3), noise(0.7, 4), silence(1), noise(5, 2), silence(1), noise(0.4, 3))
    return np.concatenate([silence(1), *parts, silence(0.2)])


@pytest.fixture(scope="module")
def tiny(parts):
    model, processor = compose(
        parts,
        "moe_cif",
        encoder_attention="chunked",
        encoder_chunk_s=0.4,
        encoder_left_context_s=1.0,
        encoder_lookahead_s=0.04,
    )
    model.generation_config.max_new_tokens = 12
    return model, processor


def listen(stream, waveform, sizes):
    events, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(waveform):
            return events + stream.finish()
        events += stream.push(waveform[start : start + size])
        start += size


def test_a_finished_segment_has_the_text_of_generate(tiny, speech):
    model, processor = tiny
    events = listen(LlmAsrStream(model, processor, "es", encoder="cached", latency_s=0.5), speech, [700])
    segments = [event.segment for event in events if event.segment]
    assert len(segments) == 4
    for segment in segments:
        samples = speech[round(segment.start * RATE) : round(segment.end * RATE)]
        inputs = processor.apply_transcription_request(samples, language="es")
        assert segment.text == processor.decode(model.generate(**inputs)[0])
        assert segment.text
    # Text appears before segments are finished.
    assert any(event.partial for event in events)
    finished = listen(LlmAsrStream(model, processor, "es", latency_s=0.5), speech, [700])
    assert [event.segment for event in finished if event.segment] == segments


def test_events_do_not_depend_on_the_block_sizes(tiny, speech):
    expected = listen(LlmAsrStream(*tiny, encoder="cached", latency_s=0.5), speech, [len(speech)])
    assert len(expected) > 6
    for sizes in ([160], np.random.default_rng(0).integers(1, 9000, 50).tolist()):
        assert listen(LlmAsrStream(*tiny, encoder="cached", latency_s=0.5), speech, sizes) == expected


def test_each_frame_is_encoded_once(tiny, speech):
    """Only a segment that is cut at its longest is encoded anew."""
    model, processor = tiny
    layer = model.model.audio_tower.layers[0]
    counts = {}
    for encoder in ("cached", "reencode"):
        frames = []
        hook = layer.register_forward_pre_hook(lambda module, given, frames=frames: frames.append(given[0].shape[1]))
        events = listen(
            LlmAsrStream(model, processor, "es", encoder=encoder, latency_s=0.5), speech[: 5 * RATE], [700]
        )
        hook.remove()
        counts[encoder] = sum(frames)
    segment = events[-1].segment
    assert segment is not None
    heard = 50 * sum(event.segment.end - event.segment.start for event in events if event.segment)
    # With the copies of the look-ahead of two frames in twenty.
    assert counts["cached"] <= 1.1 * heard + 2
    assert counts["reencode"] > 2 * counts["cached"]


def test_nothing_is_transcribed_before_the_first_embedding(tiny, speech, monkeypatch):
    """The model would invent a text. With this latency, the first pass is due before the first chunk is complete."""
    model, processor = tiny
    num_embeds, num_due = [], []
    generate, encode = model.generate, stream_module.encode_segments

    def counting_generate(**kwargs):
        num_embeds.extend(kwargs["audio_outputs"].audio_lengths.tolist())
        return generate(**kwargs)

    def counting_encode(*args):
        outputs = encode(*args)
        num_due.extend(int(output.audio_lengths) for output in outputs)
        return outputs

    monkeypatch.setattr(model, "generate", counting_generate)
    monkeypatch.setattr(stream_module, "encode_segments", counting_encode)
    listen(LlmAsrStream(model, processor, "es", encoder="cached", latency_s=0.2), speech[: 3 * RATE], [700])
    assert 0 in num_due
    assert num_embeds == [count for count in num_due if count]


def test_streams_of_one_batch(tiny, speech):
    recordings = [speech, speech[RATE // 2 :], np.roll(speech, 3 * RATE)]
    alone = [listen(LlmAsrStream(*tiny, "es", encoder="cached"), recording, [1600]) for recording in recordings]
    streams = [LlmAsrStream(*tiny, "es", encoder="cached") for _ in recordings]
    together = [[] for _ in recordings]
    for start in range(0, len(speech), 1600):
        blocks = [recording[start : start + 1600] for recording in recordings]
        for events, new in zip(together, push_together(streams, blocks), strict=True):
            events += new
    for events, new in zip(together, finish_together(streams), strict=True):
        events += new
    assert together == alone


def test_what_does_not_fit_is_refused(tiny, parts):
    with pytest.raises(ValueError, match="`encoder` must be one of .*'reencode', 'cached'.*, got 'chunked'"):
        LlmAsrStream(*tiny, encoder="chunked")
    with pytest.raises(ValueError, match="`encoder_attention` of the model is 'full'"):
        LlmAsrStream(*compose(parts, "cif"), encoder="cached")
    streams = [LlmAsrStream(*tiny, encoder=encoder) for encoder in ("cached", "reencode")]
    with pytest.raises(ValueError, match="`streams` must have the same `encoder`"):
        push_together(streams, [silence(1), silence(1)])
