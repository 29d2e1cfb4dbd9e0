"""`llm-asr listen` and what it reads and writes."""

import json
import os
import re
import signal
import sys
import threading
from contextlib import suppress
from io import StringIO

import numpy as np
import pytest
from containers import encode_container
from tiny_models import compose
from transformers import pipeline

from llm_asr.cli import main
from llm_asr.commands.live_text import LiveText
from llm_asr.live.blocks import BlockQueue
from llm_asr.live.microphone import MicrophoneError, open_microphone
from llm_asr.live.pipe import PipeError, open_pipe
from llm_asr.live.stream import LlmAsrStream


RATE = 16000


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(RATE * seconds))).astype("float32")


@pytest.fixture(scope="module")
def speech():
    """Two segments, as PCM."""
    silence = np.zeros(RATE, "float32")
    waveform = np.concatenate([silence, noise(1.2, 1), silence, noise(2, 2), silence])
    return (32767 * waveform).astype("<i2")


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = compose(parts, "cif")
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def segments(checkpoint, speech):
    transcriber = pipeline("automatic-speech-recognition", model=checkpoint)
    stream = LlmAsrStream(transcriber.model, transcriber.processor, "es")
    return [event.segment for event in stream.push(speech) + stream.finish() if event.segment]


@pytest.fixture
def pipe(monkeypatch):
    """Returns a function that makes the standard input a pipe and writes to it in a thread."""
    opened = []

    def make(contents, pause=None):
        ends = os.pipe()
        reader, writer = os.fdopen(ends[0], "rb"), os.fdopen(ends[1], "wb")

        def write():
            # The reader may refuse the pipe and leave.
            with suppress(BrokenPipeError), writer:
                for part in contents if isinstance(contents, list) else [contents]:
                    if part is None:
                        assert pause.wait(20)
                    else:
                        writer.write(part)
                        writer.flush()

        thread = threading.Thread(target=write)
        thread.start()
        opened.append((reader, thread))
        monkeypatch.setattr(sys, "stdin", type("Standard", (), {"buffer": reader, "isatty": lambda self: False})())
        return reader

    yield make
    for reader, thread in opened:
        reader.close()
        thread.join()


def test_text_is_printed_during_the_recording(checkpoint, speech, segments, pipe, capsys):
    pipe(speech.tobytes())
    assert main(["listen", "-", "--model", checkpoint, "--pcm-rate", "16000", "--language", "es"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Early commitments may differ from the segments.
    assert len(lines) == len(segments) == 2


@pytest.mark.parametrize("name", ["srt", "vtt", "json"])
def test_formats_are_written_at_the_end(checkpoint, speech, segments, pipe, capsys, tmp_path, name):
    pipe(encode_container(speech / np.float32(32768), RATE, "wav", "pcm_s16le"))
    output = tmp_path / f"out.{name}"
    arguments = ["listen", "-", "--model", checkpoint, "--language", "es", "--format", name, "--output", str(output)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""
    written = output.read_text()
    if name == "json":
        result = json.loads(written)
        assert result["text"] == " ".join(segment.text for segment in segments)
        assert result["language"] == "Spanish"
    else:
        words = [word.text for segment in segments for word in segment.words]
        lines = [line for line in written.splitlines() if "-->" not in line and not re.fullmatch(r"\d*|WEBVTT", line)]
        if name == "srt":
            assert "".join(lines).replace(" ", "") == "".join(words)
        assert "-->" in written


def test_an_interrupt_ends_the_command_with_its_result(checkpoint, speech, segments, pipe, capsys):
    never = threading.Event()
    reader = pipe([speech.tobytes(), None], pause=never)

    class Watched(StringIO):
        """Interrupts the program at the second line."""

        def write(self, text):
            super().write(text)
            if self.getvalue().count("\n") == 2:
                os.kill(os.getpid(), signal.SIGINT)

    watched, output = Watched(), sys.stdout
    sys.stdout = watched
    try:
        status = main(["listen", "-", "--model", checkpoint, "--pcm-rate", "16000", "--language", "es"])
    finally:
        sys.stdout = output
        never.set()
    assert status == 0
    assert watched.getvalue().count("\n") == 2
    assert not reader.closed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_pcm_that_ends_inside_a_sample(checkpoint, speech, pipe, capsys):
    pipe(speech.tobytes() + b"x")
    assert main(["listen", "-", "--model", checkpoint, "--pcm-rate", "16000"]) == 1
    printed = capsys.readouterr()
    assert "ends in the middle of a sample" in printed.err
    assert len(printed.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "contents", "message"),
    [
        (["-"], b"No recording at all.", "holds no file in a known format"),
        (["-"], b"", "The pipe is empty"),
        (["-"], b"RIFF0000WAVEnonsense", "cannot be decoded as wav"),
        (["-", "--language", "klingon"], b"RIFF", "not among the"),
        (["-", "--encoder", "cached"], b"RIFF", "`encoder_attention` of the model is 'full'"),
        (["-", "--pcm-rate", "100"], b"0000", "`sampling_rate` must be a whole number from 4000 up"),
        (["-", "--device-name", "1"], b"", "--device-name is for the microphone"),
        (["--pcm-rate", "16000"], b"", "--pcm-rate is for a pipe"),
    ],
)
def test_bad_input_is_refused(checkpoint, speech, pipe, capsys, arguments, contents, message):
    if contents == b"RIFF":
        contents = encode_container(speech / np.float32(32768), RATE, "wav", "pcm_s16le")
    pipe(contents)
    assert main(["listen", *arguments, "--model", checkpoint]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("wav", "pcm_s16le", 16000),
        ("flac", "flac", 44100),
        ("mp3", "libmp3lame", 44100),
        ("ogg", "libopus", 48000),
        ("webm", "libopus", 48000),
        ("adts", "aac", 16000),
    ],
)
def test_containers_are_read_during_the_recording(pipe, container, codec, rate):
    waveform = noise(10)
    contents, pause = encode_container(waveform, rate, container, codec), threading.Event()
    with open_pipe(pipe([contents[: len(contents) // 2], None, contents[len(contents) // 2 :]], pause)) as source:
        assert source.sampling_rate == rate
        blocks = iter(source.blocks)
        first = next(blocks)
        pause.set()
        samples = np.concatenate([first, *blocks])
    assert len(first) < 0.6 * len(waveform)
    assert len(samples) == pytest.approx(len(waveform), abs=2500)
    assert samples.dtype == np.float32
    assert samples.std() == pytest.approx(0.1, abs=0.03)


def test_a_changing_sampling_rate_is_refused(pipe):
    contents = encode_container(noise(1), 16000, "adts", "aac") + encode_container(noise(1), 32000, "adts", "aac")
    with open_pipe(pipe(contents)) as source, pytest.raises(PipeError, match="changes from 16000 to 32000"):
        list(source.blocks)


def test_a_full_queue_refuses_a_block_or_waits():
    blocks = BlockQueue(max_samples=10)
    assert blocks.put(np.zeros(10), wait=False)
    assert not blocks.put(np.ones(10), wait=False)
    waiting = threading.Thread(target=blocks.put, args=(np.ones(4), True))
    waiting.start()
    iterator = iter(blocks)
    assert next(iterator).tolist() == [0] * 10
    waiting.join(10)
    blocks.close(ValueError("gone"))
    assert not blocks.put(np.zeros(1), wait=True)
    assert next(iterator).tolist() == [1] * 4
    with pytest.raises(ValueError, match="gone"):
        next(iterator)


def test_a_missing_sounddevice_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ImportError, match=r"llm-asr\[live\]"), open_microphone():
        pass


def test_a_missing_microphone_is_named():
    try:
        import sounddevice
    except (ImportError, OSError):
        pytest.skip("needs sounddevice and PortAudio")
    with pytest.raises(MicrophoneError, match="cannot be used"), open_microphone(len(sounddevice.query_devices())):
        pass


def show(written, columns):
    """The lines on a terminal: it knows the escape sequences that are used, and that a full line is continued on the next."""
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[\d*[A-Za-z]|.|\n", written):
        if token.startswith("\x1b"):
            number = int(token[2:-1] or 0)
            if token[-1] == "K":
                lines[-1] = lines[-1][:column]
            elif token[-1] == "D":
                column -= number
            else:
                assert token[-1] == "m"
            continue
        if token == "\n" or column == columns:
            lines.append("")
            column = 0
        if token != "\n":
            lines[-1] = lines[-1][:column] + token + lines[-1][column + 1 :]
            column += 1
    return lines


def test_the_terminal_shows_final_and_provisional_text():
    file = StringIO()
    text = LiveText(file, columns=20)
    text.write("", "uno does", False)
    assert show(file.getvalue(), 20) == ["uno does"]
    text.write("uno", " dos tres cuatro cinco seis", False)
    assert show(file.getvalue(), 20) == ["uno dos tres cuatro"]
    text.write(" dos tres cuatro cinco", " seis", False)
    assert show(file.getvalue(), 20) == ["uno dos tres cuatro", "cinco seis"]
    text.write(" seis", "", True)
    text.write(" siete", "", False)
    text.write("", "", True)
    assert show(file.getvalue(), 20) == ["uno dos tres cuatro", "cinco seis", "siete", ""]
    assert "\x1b[2m" in file.getvalue()


def test_only_committed_text_is_written_without_a_terminal():
    file = StringIO()
    text = LiveText(file, columns=None)
    for event in (("", "un", False), ("uno", " dos", False), (" dos", "", True), (" tres", "", True), ("", "", True)):
        text.write(*event)
    assert file.getvalue() == "uno dos\ntres\n"
