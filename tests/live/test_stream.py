"""Live transcription of one stream and of several."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import compose

from llm_asr.live.stream import LlmAsrStream, finish_together, push_together
from llm_asr.live.transcript import LiveSettings


RATE = 16000


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(RATE * seconds))).astype("float32")


def silence(seconds):
    return np.zeros(int(RATE * seconds), "float32")


@pytest.fixture(scope="module")
def speech():
    """Three segments: 1.8 s, 5 s, which is longer than the encoder's window of 3 s, and 0.4 s."""
    return np.concatenate(
        [silence(1), noise(1.8, 1), silence(1), noise(5, 2), silence(1), noise(0.4, 3), silence(0.2)]
    )


def make(parts, projector_type="moe_cif", **kwargs):
    model, processor = compose(parts, projector_type, **kwargs)
    model.generation_config.max_new_tokens = 12
    return model.eval(), processor


@pytest.fixture(scope="module")
def tiny(parts):
    return make(parts)


def listen(stream, waveform, sizes):
    """Push a waveform in blocks of the given sizes, again and again, and return all events."""
    events, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(waveform):
            break
        events += stream.push(waveform[start : start + size])
        start += size
    return events + stream.finish()


def transcribe(model, processor, waveform, language=None):
    inputs = processor.apply_transcription_request(waveform, language=language, identify_language=language is None)
    return processor.decode(model.generate(**inputs)[0])


def count_calls(monkeypatch, model, name):
    calls = []
    method = getattr(model, name)
    monkeypatch.setattr(model, name, lambda *args, **kwargs: (calls.append(kwargs), method(*args, **kwargs))[1])
    return calls


def check_against_generate(model, processor, waveform, events, language=None):
    segments = [event.segment for event in events if event.segment]
    for segment in segments:
        samples = waveform[round(segment.start * RATE) : round(segment.end * RATE)]
        assert segment.text == transcribe(model, processor, samples, language)
    return segments


@pytest.mark.parametrize("language", [None, "es"])
def test_a_finished_segment_has_the_text_of_generate(tiny, speech, language):
    model, processor = tiny
    events = listen(LlmAsrStream(model, processor, language, latency_s=0.5), speech, [700])
    segments = check_against_generate(model, processor, speech, events, language)
    assert len(segments) == 4
    assert all(segment.text for segment in segments)
    assert segments[0].start == pytest.approx(0.8, abs=0.04)
    assert segments[0].end == pytest.approx(3.0, abs=0.04)
    # A segment of continuous speech is cut where the window ends, and no sample is lost.
    assert segments[1].end == segments[2].start
    assert all(event.language == ("Spanish" if language else event.language) for event in events)


@pytest.mark.parametrize("projector_type", ["conv", "cif"])
@pytest.mark.parametrize("audio", ["whisper", "wav2vec2-bert", "parakeet", "moonshine"])
def test_every_encoder_and_projector(parts, speech, audio, projector_type):
    model, processor = make(parts, projector_type, audio=audio)
    events = listen(LlmAsrStream(model, processor, "es", max_segment_s=2.5), speech, [4000])
    assert len(check_against_generate(model, processor, speech, events, "es")) >= 4
    words = [word for event in events for word in event.words]
    assert words
    if projector_type == "conv":
        assert all(word.start is word.end is None for word in words)
    else:
        finished = [word for event in events if event.segment for word in event.segment.words]
        assert all(0.8 <= word.start <= word.end <= len(speech) / RATE for word in finished)
        assert [word.start for word in finished] == sorted(word.start for word in finished)


def test_events_do_not_depend_on_the_block_sizes(tiny, speech):
    expected = listen(LlmAsrStream(*tiny, latency_s=0.5), speech, [len(speech)])
    assert len(expected) > 8
    generator = np.random.default_rng(0)
    for sizes in ([160], generator.integers(1, 9000, 50).tolist()):
        assert listen(LlmAsrStream(*tiny, latency_s=0.5), speech, sizes) == expected


def test_committed_text_is_the_text_of_the_segments(tiny, speech):
    """Without agreement, nothing is committed before the segment is finished."""
    events = listen(LlmAsrStream(*tiny, latency_s=0.5, agreement=None), speech, [1600])
    committed = "".join(event.committed for event in events)
    assert committed == " ".join(" ".join(event.segment.text.split()) for event in events if event.segment)
    assert all(bool(event.committed) == (event.segment is not None) for event in events)
    assert any(event.partial for event in events)


def test_words_are_committed_before_a_pause(tiny, speech):
    """With an agreement of one pass, each hypothesis is committed, and what follows is added to it."""
    events = listen(LlmAsrStream(*tiny, latency_s=0.5, agreement=1), speech, [1600])
    early = [event for event in events if event.committed and event.segment is None]
    assert early
    assert all(event.partial == "" for event in early)
    words = [word.text for event in events for word in event.words]
    assert "".join("".join(event.committed for event in events).split()) == "".join(words)
    assert early[0].heard < 2.8


def test_silence_needs_no_pass_and_has_no_text(tiny, monkeypatch):
    model, processor = tiny
    stream = LlmAsrStream(model, processor, latency_s=0.5)
    assert stream.push(np.concatenate([silence(1), noise(0.8), silence(1)]))[-1].segment is not None
    calls = count_calls(monkeypatch, model, "generate")
    encoded = count_calls(monkeypatch, model.model, "get_audio_features")
    assert listen(stream, silence(300), [16000]) == []
    assert calls == encoded == []


def test_noise_has_no_text_with_silero(tiny, monkeypatch):
    pytest.importorskip("silero_vad", reason='pip install "llm-asr[vad]"')
    model, processor = tiny
    calls = count_calls(monkeypatch, model, "generate")
    assert listen(LlmAsrStream(model, processor, vad="silero"), noise(20), [16000]) == []
    assert calls == []


def test_a_pause_inside_a_segment_needs_no_pass(tiny, monkeypatch):
    model, processor = tiny
    stream = LlmAsrStream(model, processor, latency_s=0.25, min_silence_s=2.5)
    stream.push(np.concatenate([silence(0.5), noise(1)]))
    stream.push(silence(0.5))
    calls = count_calls(monkeypatch, model, "generate")
    assert stream.push(silence(1)) == []
    assert calls == []


def test_cost_and_memory_do_not_grow(tiny, monkeypatch):
    """The cost is counted in seconds of audio that the encoder gets."""
    model, processor = tiny
    stream = LlmAsrStream(model, processor, latency_s=1.0)
    calls = count_calls(monkeypatch, model, "generate")
    costs, held = [], []
    minute = np.concatenate([noise(7.5), silence(0.5), noise(1.5), silence(2.5)])
    for _ in range(5):
        calls.clear()
        stream.push(minute)
        costs.append(sum(int(call["input_features_mask"].sum()) for call in calls))
        segmenter = stream.transcript.segmenter
        held.append(segmenter._samples.nbytes + segmenter._speech.nbytes + segmenter._levels.nbytes)
    assert costs[-1] == pytest.approx(costs[1], rel=0.05)
    assert max(held) < 4 * RATE
    # Seconds of audio encoded for a second of audio: half a window for each second of latency, and each segment once.
    assert costs[-1] / 100 < 12 * 3


def test_the_previous_transcript_is_verified_in_one_pass(tiny, monkeypatch):
    model, processor = tiny
    stream = LlmAsrStream(model, processor, latency_s=0.5)
    calls = count_calls(monkeypatch, model, "generate")
    stream.push(np.concatenate([silence(0.5), noise(2)]))
    first, *others = calls
    assert "draft_ids" not in first
    assert len(others) >= 2
    assert all(len(call["draft_ids"]) for call in others)


def test_several_streams_form_one_batch(tiny, speech, monkeypatch):
    model, processor = tiny
    waveforms = [speech, speech[::-1].copy(), np.concatenate([silence(0.3), speech])[: len(speech)]]
    options = [{"language": "es"}, {"prompt": "cuatro"}, {"keywords": ["Ana"]}]
    alone = [
        listen(LlmAsrStream(model, processor, **kwargs), waveform, [3200])
        for kwargs, waveform in zip(options, waveforms, strict=True)
    ]
    calls = count_calls(monkeypatch, model, "generate")
    streams = [LlmAsrStream(model, processor, **kwargs) for kwargs in options]
    together = [[] for _ in streams]
    for start in range(0, len(speech), 3200):
        blocks = [waveform[start : start + 3200] for waveform in waveforms]
        for events, new in zip(together, push_together(streams, blocks), strict=True):
            events += new
    for events, new in zip(together, finish_together(streams), strict=True):
        events += new
    assert together == alone
    assert max(len(call["input_ids"]) for call in calls) > 1
    other = LlmAsrStream(*compose_again(tiny))
    with pytest.raises(ValueError, match="must have the same model"):
        push_together([LlmAsrStream(model, processor), other], [speech, speech])
    with pytest.raises(ValueError, match="must not repeat a stream"):
        push_together([other, other], [speech, speech])
    with pytest.raises(ValueError, match="`blocks` has 1 entries for 2 stream"):
        push_together([other, LlmAsrStream(model, processor)], [speech])


def compose_again(tiny):
    model, processor = tiny
    return type(model)(model.config), processor


@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_sampling_rates(tiny, speech, rate):
    soxr = pytest.importorskip("soxr", reason="pip install soxr")
    waveform = soxr.resample(speech, RATE, rate)
    events = listen(LlmAsrStream(*tiny, sampling_rate=rate), waveform, [rate // 50])
    ends = [event.segment.end for event in events if event.segment]
    assert len(ends) == 4
    assert ends[0] == pytest.approx(3.0, abs=0.1)


def test_pcm_and_whole_numbers(tiny, speech):
    samples = (speech * 32767).astype("<i2")
    expected = listen(LlmAsrStream(*tiny), samples / np.float32(32768), [1600])
    assert listen(LlmAsrStream(*tiny), samples, [1600]) == expected
    stream = LlmAsrStream(*tiny)
    contents = samples.tobytes()
    found = [event for start in range(0, len(contents), 3200) for event in stream.push(contents[start : start + 3200])]
    assert found + stream.finish() == expected


def test_bad_blocks_are_refused_and_the_stream_goes_on(tiny, speech):
    expected = listen(LlmAsrStream(*tiny), speech, [len(speech)])
    stream = LlmAsrStream(*tiny)
    events = stream.push(speech[:30000], sampling_rate=RATE)
    with pytest.raises(ValueError, match="is 8000, but the stream was opened with 16000; open another stream"):
        stream.push(speech, sampling_rate=8000)
    with pytest.raises(ValueError, match="`block` holds NaN or infinite samples"):
        stream.push(np.array([0.0, np.nan], "float32"))
    with pytest.raises(ValueError, match="two bytes for each sample, got 3 bytes"):
        stream.push(b"abc")
    with pytest.raises(ValueError, match="full scale is 1"):
        stream.push(np.full(100, 3000.0))
    with pytest.raises(ValueError, match="must have shape"):
        stream.push(speech[:600].reshape(300, 2))
    with pytest.raises(TypeError, match="`block` must be a NumPy array or bytes, got list"):
        stream.push([0.0, 0.1])
    assert stream.push(b"") == []
    events += stream.push(speech[30000:]) + stream.finish()
    assert events == expected
    for refused in (lambda: stream.push(speech), stream.finish):
        with pytest.raises(ValueError, match="is finished and takes no further blocks"):
            refused()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "klingon"}, "'klingon' is not among the"),
        ({"prompt": "<|audio|>"}, "must not contain the audio token"),
        ({"keywords": ["<|audio|>"]}, "`keywords` must not contain the audio token"),
        ({"latency_s": 0.1}, "`latency_s` must be finite and at least 0.2, got 0.1"),
        ({"latency_s": float("nan")}, "`latency_s` must be finite"),
        ({"agreement": 0}, "`agreement` must be a whole number from 1 up"),
        ({"agreement": True}, "`agreement` must be a whole number from 1 up"),
        ({"max_segment_s": 4.0}, "the limit of the speech encoder is 3 s"),
        ({"max_segment_s": 0.5}, "must be finite and last at least 1 s"),
        ({"min_silence_s": 0.0}, "`min_silence_s` must be positive"),
        ({"threshold": 1.5}, "`threshold` must be from 0 to 1"),
        ({"lead_s": -0.1}, "`lead_s` must not be negative"),
        ({"vad": "ears"}, "`vad` must be one of"),
        ({"sampling_rate": 100}, "`sampling_rate` must be a whole number from 4000 up"),
        ({"sampling_rate": 16000.0}, "`sampling_rate` must be a whole number"),
    ],
)
def test_bad_options_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        LlmAsrStream(*tiny, **options)


def test_a_model_that_samples_is_refused(parts):
    model, processor = make(parts)
    model.generation_config.do_sample = True
    with pytest.raises(ValueError, match="must be greedy"):
        LlmAsrStream(model, processor)


def test_a_stream_without_speech_has_no_events(tiny):
    assert LlmAsrStream(*tiny).finish() == []
    stream = LlmAsrStream(*tiny)
    stream.push(noise(0.05))
    assert stream.finish() == []


def test_the_longest_segment_is_within_the_encoder(tiny):
    assert LiveSettings().longest_segment(tiny[1]) == 3.0


def test_the_shortest_segment_is_long_enough_for_every_encoder(parts):
    """A segment at the start or the end of a stream has no padding."""
    for audio in ("whisper", "wav2vec2-bert", "parakeet", "moonshine"):
        model, processor = make(parts, audio=audio)
        stream = LlmAsrStream(model, processor)
        stream.push(noise(0.098))
        assert len([event for event in stream.finish() if event.segment]) == 1, audio


def test_how_segments_begin(tiny):
    def segments(waveform, **options):
        events = listen(LlmAsrStream(*tiny, **options), waveform, [len(waveform)])
        return [event.segment for event in events if event.segment]

    waveform = np.concatenate([silence(2), noise(0.8), silence(1)])
    for lead_s in (0.0, 0.2, 0.7):
        assert segments(waveform, lead_s=lead_s)[0].start == pytest.approx(2 - lead_s, abs=0.05)
    # A sound that is 26 dB quieter than the loudest one.
    quiet = np.concatenate([silence(1), noise(1), silence(1), 0.05 * noise(0.8), silence(1)])
    assert len(segments(quiet, threshold=0.5)) == 2
    assert len(segments(quiet, threshold=1.0)) == 1


def test_a_gradient_is_not_recorded(tiny, speech):
    with torch.enable_grad():
        assert LlmAsrStream(*tiny).push(speech)
