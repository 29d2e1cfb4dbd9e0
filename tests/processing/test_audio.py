"""Everything a user may hand over as a recording, and everything that is none."""

import http.server
import threading

import numpy as np
import pytest
import soundfile
import soxr
import torch

from llm_asr.processing.audio import load_audio


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


def test_paths_bytes_dicts_tensors_and_lists_give_the_same_waveform(waveform, wav_file):
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
        loaded = load_audio(source, 16000)
        assert loaded.dtype == np.float32
        np.testing.assert_allclose(loaded, waveform, atol=1e-7)


def test_a_tensor_of_lower_precision_and_a_list_of_numpy_scalars_are_waveforms(waveform):
    """What `model.to(torch.bfloat16)` users and `list(array)` hand over."""
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


def test_a_given_waveform_goes_before_the_file_it_came_from(waveform):
    decoded = {"path": "elsewhere.wav", "array": waveform, "sampling_rate": 16000}
    np.testing.assert_array_equal(load_audio(decoded, 16000), waveform)
    np.testing.assert_array_equal(
        load_audio({"array": None, "raw": waveform, "sampling_rate": 16000}, 16000), waveform
    )


def test_addresses_are_fetched(waveform, wav_file, address):
    np.testing.assert_allclose(load_audio(f"{address}/{wav_file.name}", 16000), waveform, atol=1e-7)


def test_an_address_without_a_recording_is_named(tmp_path, address):
    (tmp_path / "page.html").write_text("no audio")
    with pytest.raises(ValueError, match=r"cannot be read from 'http://.*page.html'"):
        load_audio(f"{address}/page.html", 16000)
    for name in ("nowhere.wav", "cut-short.wav"):
        with pytest.raises(ValueError, match=rf"'http://.*{name}'"):
            load_audio(f"{address}/{name}", 16000)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.wav", "'nowhere.wav' does not exist"),
        (b"no audio", "cannot be read from the given bytes"),
        (np.zeros(0, dtype="float32"), "is empty; remove it"),
        (np.array([0.1, np.nan]), "NaN or infinite"),
        (np.array([0.1, np.inf]), "NaN or infinite"),
        (np.array([0.1, 1e300]), "NaN or infinite"),
        (np.zeros((2, 100)), r"must be mono, of shape \(num_samples,\), got \(2, 100\)"),
        (torch.zeros(2, 100), r"must be mono, of shape \(num_samples,\), got \(2, 100\)"),
        (np.array(0.1), r"must be mono, of shape \(num_samples,\), got \(\)"),
        (np.zeros(100, dtype="int16"), "floating point samples in .*, got int16"),
        (torch.zeros(100, dtype=torch.int16), "floating point samples in .*, got int16"),
        ([0, 1, -1], "floating point samples in .*, got int64"),
        ([], "is empty; remove it"),
        (b"", "cannot be read from the given bytes"),
        ({"array": np.zeros(0), "sampling_rate": 16000}, "is empty; remove it"),
        ({"array": np.zeros(100)}, "needs its `sampling_rate`"),
        ({"array": np.zeros(100), "sampling_rate": None}, "`sampling_rate` must be a positive number, got None"),
        ({"array": np.zeros(100), "sampling_rate": "16000"}, "`sampling_rate` must be a positive number, got '16000'"),
        ({"array": np.zeros(100), "sampling_rate": 0}, "`sampling_rate` must be a positive number, got 0"),
        ({"array": np.zeros(100), "sampling_rate": np.inf}, "`sampling_rate` must be a positive number, got inf"),
        ({"sampling_rate": 16000}, "needs `array`"),
        ({"path": None, "bytes": None}, "needs `array`"),
    ],
)
def test_what_is_no_recording_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        load_audio(source, 16000)


@pytest.mark.parametrize("contents", [b"", b"RIFF but not for long"])
def test_a_corrupt_file_is_named(tmp_path, contents):
    file = tmp_path / "corrupt.wav"
    file.write_bytes(contents)
    with pytest.raises(ValueError, match=r"cannot be read from '.*corrupt.wav'"):
        load_audio(file, 16000)


@pytest.mark.parametrize(("samples", "problem"), [(np.zeros(0), "is empty"), (np.array([0.1, np.nan]), "holds NaN")])
def test_a_file_with_unusable_samples_is_named(tmp_path, samples, problem):
    file = tmp_path / "unusable.wav"
    soundfile.write(file, samples, 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=problem) as error:
        load_audio(file, 16000)
    assert "unusable.wav" in str(error.value)


@pytest.mark.parametrize("source", [None, 3, object()])
def test_another_type_is_refused(source):
    with pytest.raises(TypeError, match="`audio` must be a path, the bytes of a file, a waveform"):
        load_audio(source, 16000)
