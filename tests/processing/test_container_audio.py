"""M4A, WebM and other formats of phones and browsers."""

import io
import subprocess
import sys

import av
import numpy as np
import pytest
import soundfile
import soxr
from containers import encode_container

from llm_asr.processing import container_audio
from llm_asr.processing.audio import load_audio, read_duration, stream_audio
from llm_asr.processing.container_audio import find_container


FORMATS = pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("ipod", "aac", 44100),
        ("mp4", "aac", 16000),
        ("ipod", "alac", 16000),
        ("webm", "libopus", 48000),
        ("matroska", "flac", 16000),
    ],
)


def tone(seconds, rate):
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype("float32")


@FORMATS
def test_samples_are_read_without_the_padding_of_the_encoder(tmp_path, container, codec, rate):
    """Encoders add silence before the first sample, which must be removed, and pad the last frame."""
    expected = soxr.resample(tone(3.0, rate), rate, 16000)
    contents = encode_container(tone(3.0, rate), rate, container, codec)
    # FFmpeg interprets a name before a colon as a protocol.
    path = tmp_path / "concat:a.m4a"
    path.write_bytes(contents)
    for source in (contents, path, str(path), {"bytes": contents}):
        loaded = load_audio(source, 16000)
        assert loaded.dtype == np.float32
        assert 0 <= len(loaded) - len(expected) <= 1024
        np.testing.assert_allclose(loaded[1000:46000], expected[1000:46000], atol=0.03)
        assert read_duration(source) == pytest.approx(3.0, abs=0.07)


def test_channels_are_averaged():
    stereo = np.stack([tone(1.0, 16000), -0.5 * tone(1.0, 16000)], axis=1)
    loaded = load_audio(encode_container(stereo, 16000, "matroska", "flac"), 16000)
    np.testing.assert_allclose(loaded, 0.25 * tone(1.0, 16000), atol=1e-4)


@FORMATS
@pytest.mark.parametrize("seconds", [1.0, 75.0])
def test_a_stream_equals_the_waveform_loaded_at_once(container, codec, rate, seconds):
    contents = encode_container(tone(seconds, rate), rate, container, codec)
    expected = load_audio(contents, 16000)
    for block_seconds in (0.37, 5.0, 100.0):
        stream = stream_audio(contents, 16000, block_seconds)
        np.testing.assert_allclose(np.concatenate(list(stream.blocks)), expected, atol=1e-6)
    if seconds < container_audio.EXACT_SECONDS:
        # An exact duration decides whether the recording fits into the encoder's window.
        assert round(stream.duration * 16000) == len(expected)
    else:
        assert stream.duration == pytest.approx(seconds, abs=0.1)


def test_a_stream_has_blocks_of_the_given_length():
    stream = stream_audio(encode_container(tone(75.0, 16000), 16000, "matroska", "flac"), 16000)
    assert [len(block) for block in stream.blocks] == [160000] * 7 + [80000]


def test_a_truncated_webm_is_read_to_its_end():
    contents = encode_container(tone(3.0, 48000), 48000, "webm", "libopus")
    assert 0 < len(load_audio(contents[: len(contents) // 2], 16000)) < 2.0 * 16000


@pytest.mark.parametrize(
    ("container", "codec", "kept"), [("ipod", "aac", 20), ("ipod", "aac", 9000), ("webm", "libopus", 20)]
)
def test_a_truncated_file_without_its_index_is_named(container, codec, kept):
    """MP4 has its index at the end."""
    contents = encode_container(tone(3.0, 48000), 48000, container, codec)[:kept]
    with pytest.raises(ValueError, match="`audio` cannot be read from the given bytes: "):
        load_audio(contents, 16000)
    assert read_duration(contents) is None


def test_a_file_without_sound_is_named(tmp_path):
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        output.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"cannot be read from '.*silent.mp4': There is no sound in it"):
        load_audio(path, 16000)
    assert read_duration(path) is None


def test_an_absurd_sampling_rate_is_refused():
    """A second at this rate would fill the memory."""
    contents = bytearray(encode_container(tone(1.0, 16000), 16000, "ipod", "alac"))
    for place in [i for i in range(len(contents)) if contents[i : i + 4] == (16000).to_bytes(4, "big")]:
        contents[place : place + 4] = (10**9).to_bytes(4, "big")
    with pytest.raises(ValueError, match="Its header states 1000000000 samples per second"):
        load_audio(bytes(contents), 16000)
    wav = io.BytesIO()
    soundfile.write(wav, tone(1.0, 16000), 10**9, format="WAV")
    with pytest.raises(ValueError, match="`audio` in the given bytes claims 1000000000 samples per second"):
        load_audio(wav.getvalue(), 16000)


def test_formats_that_refer_to_other_files_are_refused(tmp_path):
    """FFmpeg would open the files and addresses in an uploaded playlist, including files of the server."""
    (tmp_path / "secret.wav").write_bytes(encode_container(tone(1.0, 16000), 16000, "wav", "pcm_s16le"))
    playlists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{tmp_path}/secret.wav'\n",
        f'<?xml version="1.0"?><MPD><BaseURL>file:{tmp_path}/secret.wav</BaseURL></MPD>',
    ]
    for playlist in playlists:
        assert find_container(playlist.encode()) is None
        with pytest.raises(ValueError, match="cannot be read"):
            load_audio(playlist.encode(), 16000)
        # The same holds for a playlist that starts like another format.
        with pytest.raises(ValueError, match="cannot be read"):
            load_audio(b"\0\0\0\x18ftyp" + playlist.encode(), 16000)


def test_a_missing_pyav_is_named(tmp_path):
    path = tmp_path / "memo.m4a"
    path.write_bytes(encode_container(tone(1.0, 16000), 16000, "ipod", "aac"))
    code = "import sys; sys.modules['av'] = None; from llm_asr.processing.audio import load_audio; load_audio(sys.argv[1], 16000)"
    process = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert process.returncode == 1
    assert "ImportError" in process.stderr
    assert "pip install av" in process.stderr
