"""Reading all types of recordings, and errors for other values."""

import http.server
import io
import threading

import numpy as np
import pytest
import soundfile
import soxr
import torch

from llm_asr.processing.audio import load_audio, stream_audio


def load_streamed(source, sampling_rate, **kwargs):
    return np.concatenate(list(stream_audio(source, sampling_rate, **kwargs).blocks))


# Both functions must behave alike.
either_way = pytest.mark.parametrize("load", [load_audio, load_streamed])


@pytest.fixture
def waveform():
    time = np.arange(8000) / 16000
    return (0.3 * np.sin(2 * np.pi * 440 * time)).astype("float32")


@pytest.fixture
def address(tmp_path):
    """Serves the files of the test's folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def do_GET(self):
            if self.path != "/cut-short.wav":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"RIFF")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def wav_file(waveform, tmp_path):
    file = tmp_path / "tone.wav"
    soundfile.write(file, waveform, 16000, subtype="FLOAT")
    return file


@either_way
def test_paths_bytes_dicts_tensors_and_lists_give_the_same_waveform(load, waveform, wav_file):
    sources = (
        str(wav_file),
        wav_file,
        wav_file.read_bytes(),
        {"path": str(wav_file), "bytes": None},
        {"path": "elsewhere.wav", "bytes": wav_file.read_bytes()},
        {"array": waveform, "sampling_rate": 16000},
        {"raw": torch.from_numpy(waveform), "sampling_rate": 16000},
        waveform,
        waveform.astype("float64"),
        torch.from_numpy(waveform),
        waveform.tolist(),
    )
    for source in sources:
        loaded = load(source, 16000)
        assert loaded.dtype == np.float32
        np.testing.assert_allclose(loaded, waveform, atol=1e-7)


def test_a_tensor_of_lower_precision_and_a_list_of_numpy_scalars_are_waveforms(waveform):
    """Users pass bfloat16 tensors, and lists from `list(array)`."""
    loaded = load_audio(torch.from_numpy(waveform).to(torch.bfloat16), 16000)
    np.testing.assert_allclose(loaded, waveform, atol=2e-3)
    np.testing.assert_array_equal(load_audio(list(waveform), 16000), waveform)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_compressed_files_are_read(waveform, tmp_path, suffix):
    file = tmp_path / f"tone.{suffix}"
    soundfile.write(file, waveform, 16000)
    loaded = load_audio(file, 16000)
    assert abs(len(loaded) - len(waveform)) < 1600
    assert loaded.std() == pytest.approx(waveform.std(), rel=0.1)


def test_channels_are_averaged_and_rates_converted(waveform, tmp_path):
    file = tmp_path / "stereo.wav"
    soundfile.write(file, np.stack([waveform, -0.5 * waveform], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(file, 16000), 0.25 * waveform, atol=1e-7)
    np.testing.assert_allclose(
        load_audio({"array": waveform, "sampling_rate": 44100}, 16000),
        soxr.resample(waveform, 44100, 16000),
        atol=1e-7,
    )


def test_a_file_is_converted_from_its_own_rate(waveform, tmp_path):
    file = tmp_path / "telephone.wav"
    soundfile.write(file, waveform, 8000, subtype="FLOAT")
    expected = soxr.resample(waveform, 8000, 16000)
    for source in (file, file.read_bytes(), {"path": str(file), "bytes": None}):
        np.testing.assert_array_equal(load_audio(source, 16000), expected)


def test_a_given_waveform_takes_precedence_over_its_file(waveform):
    decoded = {"path": "elsewhere.wav", "array": waveform, "sampling_rate": 16000}
    np.testing.assert_array_equal(load_audio(decoded, 16000), waveform)
    np.testing.assert_array_equal(
        load_audio({"array": None, "raw": waveform, "sampling_rate": 16000}, 16000), waveform
    )


@either_way
def test_addresses_are_fetched(load, waveform, wav_file, address):
    np.testing.assert_allclose(load(f"{address}/{wav_file.name}", 16000), waveform, atol=1e-7)


@either_way
def test_an_address_without_a_recording_is_named(load, tmp_path, address):
    (tmp_path / "page.html").write_text("no audio")
    with pytest.raises(ValueError, match=r"cannot be read from 'http://.*page.html'"):
        load(f"{address}/page.html", 16000)
    for name in ("nowhere.wav", "cut-short.wav"):
        with pytest.raises(ValueError, match=rf"'http://.*{name}'"):
            load(f"{address}/{name}", 16000)


@either_way
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.wav", "'nowhere.wav' does not exist"),
        (b"no audio", "cannot be read from the given bytes"),
        (np.zeros(0, dtype="float32"), "is empty; remove it"),
        (np.array([0.1, np.nan]), "NaN or infinite"),
        (np.array([0.1, np.inf]), "NaN or infinite"),
        (np.array([0.1, 1e300]), "NaN or infinite"),
        (np.zeros((100, 2)), r"must have shape \(num_samples,\) or .*, got \(100, 2\); transpose it"),
        (torch.zeros(1, 2, 100), r"must have shape \(num_samples,\) or .*, got \(1, 2, 100\)"),
        (np.array(0.1), r"must have shape \(num_samples,\) or .*, got \(\)"),
        (np.zeros(100, dtype="bool"), "samples of bool, whose full scale is unknown"),
        (np.zeros(100, dtype="complex64"), "samples of complex64, whose full scale is unknown"),
        ([0, 1, -1], "samples of int64, whose full scale is unknown; pass them in their original dtype"),
        (np.array([0.0, 32767.0]), "holds samples up to 32767, but full scale is 1; divide them"),
        (torch.tensor([0.0, -32768.0]), "holds samples up to 32768, but full scale is 1; divide them"),
        ({"array": [0.0, -20000.0], "sampling_rate": 8000}, "holds samples up to 20000, but full scale is 1"),
        ([], "is empty; remove it"),
        (b"", "cannot be read from the given bytes"),
        ({"array": np.zeros(0), "sampling_rate": 16000}, "is empty; remove it"),
        ({"array": np.zeros(100)}, "must also have its `sampling_rate`"),
        ({"array": np.zeros(100), "sampling_rate": None}, "`sampling_rate` must be a positive number, got None"),
        ({"array": np.zeros(100), "sampling_rate": "16000"}, "`sampling_rate` must be a positive number, got '16000'"),
        ({"array": np.zeros(100), "sampling_rate": 0}, "`sampling_rate` must be a positive number, got 0"),
        ({"array": np.zeros(100), "sampling_rate": np.inf}, "`sampling_rate` must be a positive number, got inf"),
        ({"sampling_rate": 16000}, "needs `array`"),
        ({"path": None, "bytes": None}, "needs `array`"),
    ],
)
def test_input_that_is_not_a_recording_is_refused(load, source, message):
    with pytest.raises(ValueError, match=message):
        load(source, 16000)


@either_way
@pytest.mark.parametrize("contents", [b"", b"RIFF but not for long"])
def test_a_corrupt_file_is_named(load, tmp_path, contents):
    file = tmp_path / "corrupt.wav"
    file.write_bytes(contents)
    with pytest.raises(ValueError, match=r"cannot be read from '.*corrupt.wav'"):
        load(file, 16000)


@either_way
@pytest.mark.parametrize(("samples", "problem"), [(np.zeros(0), "is empty"), (np.array([0.1, np.nan]), "holds NaN")])
def test_a_file_with_unusable_samples_is_named(load, tmp_path, samples, problem):
    file = tmp_path / "unusable.wav"
    soundfile.write(file, samples, 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=problem) as error:
        load(file, 16000)
    assert "unusable.wav" in str(error.value)


@either_way
@pytest.mark.parametrize("source", [None, 3, object()])
def test_another_type_is_refused(load, source):
    with pytest.raises(TypeError, match="`audio` must be a path, the bytes of a file, a waveform"):
        load(source, 16000)


@pytest.fixture
def long_waveform():
    """Twenty seconds of various tones."""
    time = np.arange(20 * 16000) / 16000
    generator = np.random.default_rng(0)
    pitch = np.interp(time, np.arange(0, 21, 0.2), generator.uniform(100, 3000, size=105))
    noise = 0.05 * generator.standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16000) + noise).astype("float32")


def encode(waveform, rate, **kwargs):
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        {"format": "WAV", "subtype": "PCM_16"},
        {"format": "FLAC"},
        {"format": "OGG", "subtype": "VORBIS"},
        {"format": "OGG", "subtype": "OPUS"},
        {"format": "MP3"},
        # In such a file, frames depend on earlier frames.
        {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.9},
    ],
    ids=lambda kind: "-".join(map(str, kind.values())),
)
@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_a_stream_equals_the_waveform_loaded_at_once(long_waveform, kind, rate):
    file = encode(soxr.resample(long_waveform, 16000, rate), rate, **kind)
    with soundfile.SoundFile(io.BytesIO(file)) as opened:
        expected = soxr.resample(opened.read(dtype="float32"), rate, 16000)
    # Decoders of compressed formats differ in rounding. For Opus, FFmpeg decodes at 48 kHz and leaves lower rates to the resampler.
    tolerance = {"OPUS": 0.12, "VORBIS": 2e-4}.get(kind.get("subtype"), 2e-4 if kind["format"] == "MP3" else 0)
    np.testing.assert_allclose(load_audio(file, 16000), expected, atol=tolerance)
    assert stream_audio(file, 16000).duration == pytest.approx(20.0, abs=0.1)
    for block_seconds in (0.37, 5.0, 60.0):
        streamed = load_streamed(file, 16000, block_seconds=block_seconds)
        assert streamed.dtype == np.float32
        np.testing.assert_allclose(streamed, load_audio(file, 16000), atol=1e-6)


def test_a_stream_has_blocks_of_the_given_length(long_waveform, tmp_path):
    file = tmp_path / "stereo.wav"
    soundfile.write(file, np.stack([long_waveform, -0.5 * long_waveform], axis=1), 16000, subtype="FLOAT")
    for source, expected in ((file, 0.25 * long_waveform), (long_waveform, long_waveform)):
        stream = stream_audio(source, 16000, block_seconds=3.0)
        assert stream.duration == 20.0
        blocks = list(stream.blocks)
        assert [len(block) for block in blocks] == 6 * [48000] + [32000]
        np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-7)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_stream_that_ends_with_a_block_is_complete(long_waveform, rate):
    waveform = long_waveform[:16000]
    file = encode(waveform, rate, format="WAV", subtype="FLOAT")
    streamed = load_streamed(file, 16000, block_seconds=8000 / rate)
    np.testing.assert_allclose(streamed, soxr.resample(waveform, rate, 16000), atol=1e-6)


def test_a_stream_is_read_only_as_far_as_it_is_consumed(long_waveform, tmp_path):
    file = tmp_path / "broken.wav"
    long_waveform[7 * 16000] = np.nan
    soundfile.write(file, long_waveform, 16000, subtype="FLOAT")
    blocks = stream_audio(file, 16000, block_seconds=3.0).blocks
    np.testing.assert_array_equal(np.concatenate([next(blocks), next(blocks)]), long_waveform[: 6 * 16000])
    with pytest.raises(ValueError, match=r"'.*broken.wav' holds NaN"):
        next(blocks)


@either_way
def test_a_truncated_recording_is_read_to_its_end(load, long_waveform):
    """The header still states the whole duration."""
    file = encode(long_waveform, 16000, format="MP3", bitrate_mode="CONSTANT")
    loaded = load(file[: len(file) // 2], 16000)
    assert 8.0 < len(loaded) / 16000 < 12.0


@either_way
def test_a_recording_that_was_written_to_a_pipe_is_read(load, long_waveform):
    """The writer could not seek back to write the length, so the FLAC header has a zero."""
    file = bytearray(encode(long_waveform, 16000, format="FLAC"))
    file[21] &= 0xF0
    file[22:26] = bytes(4)
    np.testing.assert_allclose(load(bytes(file), 16000), long_waveform, atol=1e-4)


@pytest.mark.parametrize("block_seconds", [0.0, -1.0, np.nan, np.inf])
def test_impossible_blocks_are_refused(waveform, block_seconds):
    with pytest.raises(ValueError, match="`block_seconds` must be positive"):
        stream_audio(waveform, 16000, block_seconds=block_seconds)
