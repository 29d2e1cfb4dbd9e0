"""Files with missing or wrong durations in their headers are read completely, and missing parts are reported."""

import io
import re
import struct

import numpy as np
import pytest
import soundfile
from containers import encode_container
from transformers.utils import logging

from llm_asr.processing import audio, audio_files
from llm_asr.processing.audio import load_audio, read_duration, stream_audio


@pytest.fixture
def warnings(monkeypatch):
    heard = []
    monkeypatch.setattr(logging.get_logger(audio.__name__), "warning", heard.append)
    return heard


def speech_like(seconds, rate):
    """Tones with pauses, and then noise. With a variable bit rate, the first half is much smaller than the second half."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal(len(time))
    tone = 0.3 * np.sin(2 * np.pi * 440 * time) * (np.sin(2 * np.pi * 0.2 * time) > 0)
    return (tone + 0.1 * noise * (time > seconds / 2)).astype("float32")


def encode(samples, rate, **kwargs):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **kwargs)
    return file.getvalue()


def mp3(seconds, rate=44100, **kwargs):
    return encode_container(speech_like(seconds, rate), rate, "mp3", "libmp3lame", **kwargs)


ID3V1 = b"TAG" + bytes(125)


@pytest.mark.parametrize(
    ("make", "seconds"),
    [
        (
            lambda: mp3(39, options={"write_xing": "0"}, codec_options={"flags": "+qscale", "global_quality": "236"}),
            39,
        ),
        (
            lambda: mp3(75, options={"write_xing": "0"}, codec_options={"flags": "+qscale", "global_quality": "236"}),
            75,
        ),
        (lambda: mp3(39) + mp3(39), 78),
        (lambda: mp3(20) + ID3V1 + mp3(20), 40),
        (lambda: mp3(20, 44100) + mp3(10, 22050), 30),
        (lambda: b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + mp3(20), 20),
        (lambda: encode_container(speech_like(39, 48000), 48000, "ogg", "libopus"), 39),
        (lambda: encode(speech_like(39, 48000), 48000, format="OGG", subtype="OPUS") * 2, 78),
        (lambda: encode(speech_like(39, 44100), 44100, format="OGG", subtype="VORBIS") * 2, 78),
        (lambda: encode_container(speech_like(39, 44100), 44100, "adts", "aac"), 39),
        (lambda: encode_container(speech_like(39, 8000), 8000, "amr", "libopencore_amrnb"), 39),
    ],
    ids=[
        "mp3-variable-without-xing",
        "mp3-variable-without-xing-long",
        "mp3-appended",
        "mp3-appended-after-a-tag",
        "mp3-appended-at-another-rate",
        "mp3-tagged",
        "opus",
        "opus-chained",
        "vorbis-chained",
        "aac",
        "amr",
    ],
)
def test_compressed_files_are_read_to_their_actual_end(make, seconds):
    contents = make()
    loaded = load_audio(contents, 16000)
    assert len(loaded) / 16000 == pytest.approx(seconds, abs=0.2)
    # The end has sound. It is not only padded to the length.
    assert np.abs(loaded[-16000:]).mean() > 0.01
    assert read_duration(contents) == pytest.approx(len(loaded) / 16000, abs=0.2)
    assert stream_audio(contents, 16000).duration == pytest.approx(len(loaded) / 16000, abs=0.2)


def test_a_flac_of_unknown_length_has_no_duration():
    contents = bytearray(encode(speech_like(3, 16000), 16000, format="FLAC"))
    contents[21] &= 0xF0
    contents[22:26] = bytes(4)
    assert read_duration(bytes(contents)) is None
    assert stream_audio(bytes(contents), 16000).duration is None
    assert len(load_audio(bytes(contents), 16000)) == 48000


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF - 36])
def test_a_wav_that_was_written_to_a_pipe_is_read(tmp_path, warnings, size):
    """The program that wrote the file could not seek back to write the size, or was stopped before."""
    samples = speech_like(3, 16000)
    contents = bytearray(encode(samples, 16000, format="WAV", subtype="PCM_16"))
    place = contents.index(b"data") + 4
    contents[place : place + 4] = struct.pack("<I", size)
    contents[4:8] = struct.pack("<I", min(size + 36, 0xFFFFFFFF))
    path = tmp_path / "pipe.wav"
    path.write_bytes(contents)
    for source in (bytes(contents), path):
        np.testing.assert_allclose(load_audio(source, 16000), samples, atol=1e-4)
    assert not warnings


@pytest.mark.parametrize(
    ("name", "make", "problem"),
    [
        (
            "cut.wav",
            lambda: encode(speech_like(4, 16000), 16000, format="WAV", subtype="PCM_16"),
            "its header states 128000",
        ),
        (
            "cut.aiff",
            lambda: encode(speech_like(4, 16000), 16000, format="AIFF", subtype="PCM_16"),
            "its header states 12800",
        ),
        (
            "cut.webm",
            lambda: encode_container(speech_like(8, 48000), 48000, "webm", "libopus"),
            r"it ends after \d\.\d s, but its header states 8.0 s",
        ),
        (
            "cut.m4a",
            lambda: encode_container(speech_like(8, 44100), 44100, "mp4", "aac", {"movflags": "faststart"}),
            r"it ends after \d\.\d s, but its header states 8.0 s",
        ),
    ],
)
def test_a_truncated_file_is_read_with_a_warning(tmp_path, warnings, name, make, problem):
    contents = make()
    path = tmp_path / name
    path.write_bytes(contents[: len(contents) // 2])
    loaded = load_audio(path, 16000)
    assert len(loaded) > 16000
    assert len(warnings) == 1
    assert re.search(problem, warnings[0]), warnings
    assert name in warnings[0]
    path.write_bytes(contents)
    warnings.clear()
    load_audio(path, 16000)
    assert not warnings


def test_a_truncated_flac_is_refused(tmp_path):
    contents = encode(speech_like(4, 16000), 16000, format="FLAC")
    path = tmp_path / "cut.flac"
    path.write_bytes(contents[: len(contents) // 2])
    with pytest.raises(ValueError, match=r"cannot be read from '.*cut.flac'"):
        load_audio(path, 16000)


def wav_header(channels, rate, num_bytes):
    frame = 2 * channels
    fmt = struct.pack("<HHIIHH", 1, channels, rate, min(rate * frame, 0xFFFFFFFF), frame, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + num_bytes)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + fmt
        + b"data"
        + struct.pack("<I", num_bytes)
    )


def test_an_absurd_header_is_refused():
    """Ten seconds with this header would need 29 GiB."""
    contents = wav_header(1024, 768_000, 4096) + bytes(4096)
    with pytest.raises(ValueError, match="claims 768000 samples per second and 1024 channels; repair or remove it"):
        load_audio(contents, 16000)


def test_blocks_have_a_limit_in_bytes(monkeypatch):
    monkeypatch.setattr(audio_files, "MAX_BLOCK_BYTES", 2**16)
    samples = np.stack([speech_like(3, 16000)] * 8, axis=1)
    contents = encode(samples, 16000, format="WAV", subtype="FLOAT")
    blocks = list(stream_audio(contents, 16000, block_seconds=60.0).blocks)
    assert max(map(len, blocks)) == 2**16 // 32
    np.testing.assert_allclose(np.concatenate(blocks), samples[:, 0], atol=1e-6)
