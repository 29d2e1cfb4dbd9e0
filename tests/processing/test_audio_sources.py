"""Recordings in the forms of other libraries."""

import http.server
import io
import threading
import time
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, IterableDataset
from tiny_models import compose
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from llm_asr.processing import fetching
from llm_asr.processing.audio import load_audio, read_duration, stream_audio
from llm_asr.training.data_collator import LlmAsrDataCollator


RATE = 16000


@pytest.fixture
def waveform():
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / RATE)).astype("float32")


def encode(samples, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


class AudioSamples:
    def __init__(self, data, sample_rate):
        self.data = data
        self.sample_rate = sample_rate


class AudioDecoder:
    """A stand-in for torchcodec's class in rows of `datasets`. The real package needs libraries of CUDA or FFmpeg."""

    def __init__(self, waveform, rate):
        self.samples = AudioSamples(torch.from_numpy(np.atleast_2d(waveform)), rate)

    def get_all_samples(self):
        return self.samples


def load_streamed(source, rate):
    return np.concatenate(list(stream_audio(source, rate).blocks))


@pytest.mark.parametrize("load", [load_audio, load_streamed])
def test_every_form_of_audio_is_read(load, waveform, tmp_path):
    contents = encode(waveform)
    path = tmp_path / "one.wav"
    path.write_bytes(contents)
    sources = [
        io.BytesIO(contents),
        bytearray(contents),
        memoryview(contents),
        {"bytes": bytearray(contents), "path": None},
        AudioDecoder(waveform, RATE),
        AudioDecoder(np.stack([2 * waveform, 0 * waveform]), RATE),
        (RATE, waveform),
        (RATE, np.stack([2 * waveform, 0 * waveform], axis=1)),
        np.stack([2 * waveform, 0 * waveform]),
        waveform[None],
        torch.from_numpy(waveform)[None],
    ]
    for source in sources:
        np.testing.assert_allclose(load(source, RATE), waveform, atol=1e-6)
    with open(path, "rb") as file:
        np.testing.assert_allclose(load(file, RATE), waveform, atol=1e-6)
    assert read_duration(bytearray(contents)) == 0.5


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("no audio")
    with open(path) as file, pytest.raises(TypeError, match="must be opened in binary mode"):
        load_audio(file, RATE)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8"])
def test_integers_are_scaled_by_their_dtype(waveform, dtype):
    scale = {"int8": 2**7, "int16": 2**15, "int32": 2**31, "uint8": 2**7}[dtype]
    integers = (waveform.astype("float64") * scale + (scale if dtype == "uint8" else 0)).round().astype(dtype)
    for source in (integers, torch.from_numpy(integers), {"array": integers, "sampling_rate": RATE}, (RATE, integers)):
        np.testing.assert_allclose(load_audio(source, RATE), waveform, atol=1 / scale + 1e-6)


def test_decoders_and_pairs_are_converted_to_the_rate(waveform):
    slow = waveform[::2]
    for source in (AudioDecoder(slow, 8000), (8000, slow), (8000, (slow * 32767).astype("int16"))):
        assert len(load_audio(source, RATE)) == len(waveform)


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = compose(parts, "moe_cif")
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def transcriber(checkpoint):
    return pipeline("automatic-speech-recognition", model=str(checkpoint))


@pytest.fixture
def rows(recordings):
    """A dataset with a column that `datasets` decodes, as datasets on the Hub have."""
    rows = [{"bytes": encode(recording), "path": None} for recording in recordings]
    return Dataset.from_dict(
        {"audio": rows, "text": ["one", "two", "three"], "language": ["en", "es", None]}
    ).cast_column("audio", Audio())


def test_columns_of_datasets_are_transcribed(transcriber, rows, recordings):
    expected = transcriber(recordings)
    assert transcriber(rows["audio"]) == expected
    assert transcriber(rows["audio"], batch_size=2) == expected
    assert list(transcriber(KeyDataset(rows, "audio"))) == expected
    undecoded = rows.cast_column("audio", Audio(decode=False))
    assert transcriber(undecoded["audio"]) == expected
    assert list(transcriber(KeyDataset(undecoded, "audio"), batch_size=3)) == expected
    nested = Dataset.from_dict({"clip": [{"audio": {"bytes": encode(recording)}} for recording in recordings]})
    assert transcriber(nested["clip"]["audio"]) == expected
    streamed = IterableDataset.from_generator(lambda: iter(undecoded))
    assert list(transcriber(row["audio"] for row in streamed)) == expected
    mapped = undecoded.map(lambda row: transcriber(row["audio"]), remove_columns=undecoded.column_names)
    assert mapped["text"][:] == [result["text"] for result in expected]


def test_decoded_rows_are_transcribed_and_trained_on(transcriber, rows, recordings):
    decoded = [
        {"audio": AudioDecoder(recording, RATE), "text": text, "language": language}
        for recording, text, language in zip(recordings, rows["text"], rows["language"], strict=True)
    ]
    assert [transcriber(row["audio"]) for row in decoded] == transcriber(recordings)
    processor = transcriber.processor
    batch = LlmAsrDataCollator(processor)(decoded)
    expected = LlmAsrDataCollator(processor)(
        [dict(row, audio=recording) for row, recording in zip(decoded, recordings, strict=True)]
    )
    assert batch.keys() == expected.keys()
    for name in batch:
        torch.testing.assert_close(batch[name], expected[name])
    request = processor.apply_transcription_request([row["audio"] for row in decoded])
    torch.testing.assert_close(request["input_features"], expected["input_features"])


def test_real_decoders_are_read(rows, recordings):
    pytest.importorskip("torchcodec", exc_type=Exception)
    for row, recording in zip(rows, recordings, strict=True):
        np.testing.assert_allclose(load_audio(row["audio"], RATE), recording, atol=1e-4)


@pytest.fixture
def server(waveform):
    """Serves a recording under a name that must be escaped, a file that never ends, and one that never starts."""
    contents = encode(waveform)
    release = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/slow.wav":
                release.wait(10)
                return
            if self.path == "/moved.wav":
                self.send_response(302)
                self.send_header("Location", "/espa%C3%B1ol%20uno.wav")
                self.end_headers()
                return
            if unquote(self.path) not in ("/español uno.wav", "/endless.wav"):
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(contents * (100 if self.path == "/endless.wav" else 1))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        release.set()
        running.shutdown()


@pytest.mark.parametrize("name", ["español%20uno.wav", "espa%C3%B1ol%20uno.wav", "español uno.wav", "moved.wav"])
def test_addresses_with_any_characters_are_fetched(server, waveform, name):
    np.testing.assert_allclose(load_audio(f"{server}/{name}", RATE), waveform, atol=1e-6)


def test_addresses_without_a_file_are_named(server, monkeypatch):
    with pytest.raises(ValueError, match=r"cannot be fetched from 'http://.*/nowhere.wav': .*404"):
        load_audio(f"{server}/nowhere.wav", RATE)
    with pytest.raises(ValueError, match="cannot be fetched from 'http://"):
        load_audio("http://[nowhere/one.wav", RATE)
    monkeypatch.setattr(fetching, "MAX_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"at 'http://.*/endless.wav' is larger than 1 MiB; download it"):
        load_audio(f"{server}/endless.wav", RATE)
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.2)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"cannot be fetched from 'http://.*/slow.wav'"):
        load_audio(f"{server}/slow.wav", RATE)
    assert time.monotonic() - began < 5


def silence(seconds):
    return np.zeros(int(seconds * RATE), np.float32)


@pytest.mark.parametrize("seconds", [0.5, 2.0, 3.0, 3.5, 10.0])
def test_silence_of_any_length_has_no_text(transcriber, seconds):
    assert transcriber(silence(seconds))["text"] == ""
    assert transcriber(silence(seconds), return_timestamps=True)["chunks"] == []


def test_a_chunk_length_of_zero_does_not_split(transcriber, recordings):
    expected = transcriber(recordings[2])
    assert transcriber(recordings[2], chunk_length_s=0) == expected
    # The recording has silences at which a longer one would be split.
    parts = np.concatenate([recordings[0], silence(1.0), recordings[0]])
    whole = transcriber(parts, chunk_length_s=0, return_timestamps=True)
    assert whole["text"] == transcriber(parts)["text"]
    with pytest.raises(ValueError, match=r"lasts 4.2 s, but the limit of the speech encoder is 3.0 s; split it"):
        transcriber(np.concatenate([recordings[2], recordings[2]]), chunk_length_s=0)
