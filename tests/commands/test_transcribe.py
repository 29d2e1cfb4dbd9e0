"""`llm-asr transcribe`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import compose
from transformers import pipeline

from llm_asr.cli import main
from llm_asr.commands import transcribe as transcribing
from llm_asr.commands.options import UsageError
from llm_asr.commands.transcribe import find_recordings, plan_outputs
from llm_asr.subtitles import join_words, to_vtt


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = compose(parts, "cif")
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def transcripts(checkpoint):
    """Transcripts of files by the pipeline itself."""
    transcriber = pipeline("automatic-speech-recognition", model=checkpoint)
    return lambda file, **options: transcriber(str(file), **options)


@pytest.fixture
def folder(recordings, tmp_path):
    """Three recordings, one of them in a subfolder, and a file that is not a recording."""
    root = tmp_path / "recordings"
    for name, recording in zip(("one.wav", "two.flac", "more/one.wav"), recordings, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, recording, 16000)
    (root / "notes.md").write_text("no recording")
    return root


def test_the_text_of_one_file_is_printed(checkpoint, folder, transcripts, capsys):
    assert main(["transcribe", str(folder / "one.wav"), "--model", checkpoint]) == 0
    assert capsys.readouterr().out == transcripts(folder / "one.wav")["text"] + "\n"


def test_the_command_runs_as_a_program(checkpoint, folder, transcripts):
    arguments = ["transcribe", str(folder / "two.flac"), "--model", checkpoint, "--format", "json"]
    command = [sys.executable, "-m", "llm_asr", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["file"] == str(folder / "two.flac")
    assert found["text"] == transcripts(folder / "two.flac")["text"]


def test_a_folder_in_every_format(checkpoint, folder, transcripts, tmp_path):
    out = tmp_path / "out"
    formats = ["txt", "json", "srt", "vtt"]
    assert (
        main(["transcribe", str(folder), "--model", checkpoint, "--output-dir", str(out), "--format", *formats]) == 0
    )
    written = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
    assert written == sorted(f"{stem}.{name}" for stem in ("one", "two", "more/one") for name in formats)
    for stem, file in (("one", "one.wav"), ("more/one", "more/one.wav")):
        expected = transcripts(folder / file, return_timestamps=True)
        assert (out / f"{stem}.txt").read_text() == expected["text"] + "\n"
        assert json.loads((out / f"{stem}.json").read_text())["language"] == expected["language"]
        cues = (out / f"{stem}.srt").read_text().count(" --> ")
        assert cues == len(expected["chunks"]) == (out / f"{stem}.vtt").read_text().count(" --> ")


def test_patterns_and_word_times(checkpoint, folder, transcripts, tmp_path):
    out = tmp_path / "out"
    arguments = ["--model", checkpoint, "--output-dir", str(out), "--format", "json", "--timestamps", "word"]
    assert main(["transcribe", str(folder / "**" / "*.wav"), *arguments]) == 0
    found = json.loads((out / "more" / "one.json").read_text())
    expected = transcripts(folder / "more" / "one.wav", return_timestamps="word")
    assert [chunk["text"] for chunk in found["chunks"]] == [chunk["text"] for chunk in expected["chunks"]]
    assert (out / "one.json").exists()
    assert not (out / "two.json").exists()


def test_names_of_outputs_do_not_depend_on_the_number_of_matches(folder):
    (folder / "one.wav").unlink()
    assert find_recordings([str(folder / "**" / "*.wav")]) == {folder / "more" / "one.wav": Path("more/one")}


def test_words_on_the_terminal_as_subtitles(checkpoint, folder, transcripts, capsys):
    arguments = ["--model", checkpoint, "--timestamps", "word", "--format", "vtt"]
    assert main(["transcribe", str(folder / "more" / "one.wav"), *arguments]) == 0
    words = transcripts(folder / "more" / "one.wav", return_timestamps="word")["chunks"]
    assert capsys.readouterr().out == to_vtt({"chunks": join_words(words)})


def test_keywords_and_their_file(checkpoint, folder, transcripts, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\ufeffQwen\n\n San José \n", encoding="utf-8")
    arguments = [str(folder / "one.wav"), "--model", checkpoint, "--keywords-file", str(tmp_path / "names.txt")]
    assert main(["transcribe", *arguments, "--keywords", "Ana"]) == 0
    expected = transcripts(folder / "one.wav", keywords=["Ana", "Qwen", "San José"])["text"]
    assert expected != transcripts(folder / "one.wav")["text"]
    assert capsys.readouterr().out == expected + "\n"
    arguments[-1] = str(tmp_path / "nowhere.txt")
    assert main(["transcribe", *arguments]) == 2
    assert "--keywords-file" in capsys.readouterr().err


def test_existing_transcripts_are_not_repeated(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["transcribe", str(folder), "--model", checkpoint, "--output-dir", str(out)]
    assert main(command) == 0
    (out / "two.txt").write_text("by hand")
    unchanged = (out / "two.txt").stat().st_mtime_ns
    (out / "one.txt").unlink()
    capsys.readouterr()
    assert main(command) == 0
    assert "2 of 3 recordings have transcripts" in capsys.readouterr().err
    assert (out / "two.txt").read_text() == "by hand"
    assert (out / "two.txt").stat().st_mtime_ns == unchanged
    assert (out / "one.txt").exists()
    assert main([*command, "--overwrite"]) == 0
    assert (out / "two.txt").read_text() != "by hand"


def test_a_bad_file_does_not_stop_the_others(checkpoint, folder, tmp_path, capsys):
    (folder / "bad.wav").write_bytes(b"RIFF, but no more")
    soundfile.write(folder / "empty.wav", np.zeros(0), 16000)
    out = tmp_path / "out"
    assert main(["transcribe", str(folder), "--model", checkpoint, "--output-dir", str(out)]) == 1
    message = capsys.readouterr().err
    assert "2 of 5 could not be transcribed" in message
    assert "bad.wav: UnreadableAudioError: `audio` cannot be read" in message
    assert "empty.wav" in message
    assert sorted(file.name for file in out.rglob("*.txt")) == ["one.txt", "one.txt", "two.txt"]
    assert not list(out.rglob("*.partial"))


def test_a_failed_write_does_not_stop_the_others(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "more").write_text("in the way of a folder")
    assert main(["transcribe", str(folder), "--model", checkpoint, "--output-dir", str(out)]) == 1
    assert "more/one.wav: FileExistsError" in capsys.readouterr().err
    assert sorted(file.name for file in out.glob("*.txt")) == ["one.txt", "two.txt"]


def test_an_interruption_keeps_finished_transcripts(checkpoint, folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    write_outputs = transcribing.write_outputs
    written = []

    def stop_at_the_second(*args):
        if written:
            raise KeyboardInterrupt
        written.append(write_outputs(*args))

    monkeypatch.setattr("llm_asr.commands.transcribe.write_outputs", stop_at_the_second)
    command = ["transcribe", str(folder), "--model", checkpoint, "--output-dir", str(out)]
    assert main(command) == 130
    assert "finished results are kept" in capsys.readouterr().err
    assert len(list(out.rglob("*.txt"))) == 1
    monkeypatch.setattr("llm_asr.commands.transcribe.write_outputs", write_outputs)
    assert main(command) == 0
    assert len(list(out.rglob("*.txt"))) == 3


def test_two_recordings_with_one_output_are_refused(folder, tmp_path):
    soundfile.write(folder / "one.flac", np.zeros(16000), 16000)
    with pytest.raises(UsageError, match=r"one\.flac and .*one\.wav would both be written"):
        plan_outputs(find_recordings([str(folder)]), tmp_path, ["txt"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.wav"], "'nowhere.wav' is not a file"),
        (["{folder}"], "pass --output-dir"),
        (["{folder}/one.wav", "--format", "txt", "srt"], "pass --output-dir"),
        (["{folder}/one.wav", "--language", "klingon"], "'klingon' is not among the 119 languages"),
        (["{folder}/one.wav", "--prompt", "<|audio|>"], "`prompt` must not contain the audio token"),
        (["{folder}/one.wav", "--model", "no/such/model"], "--model 'no/such/model' cannot be loaded"),
        (["{folder}/one.wav", "--model", "no/model"], "--model 'no/model' cannot be loaded"),
        (["{folder}/one.wav", "--model", "{parts[whisper]}"], "it is a 'whisper' model and not an LLM-ASR model"),
        (["{folder}/one.wav", "--device", "abacus"], "--device 'abacus' cannot be used"),
        (["{folder}/one.wav", "--device", "{absent}"], "cannot be used"),
        (["{folder}/one.wav", "--output-dir", "{folder}/notes.md"], "is not a folder"),
        (["{folder}/one.wav", "--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_errors_are_one_line(checkpoint, parts, folder, arguments, message, capsys):
    absent = "mps" if torch.cuda.is_available() else "cuda"
    arguments = [argument.format(folder=folder, parts=parts, absent=absent) for argument in arguments]
    model = [] if "--model" in arguments else ["--model", checkpoint]
    assert main(["transcribe", *arguments, *model]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("llm-asr transcribe: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_word_times_need_cif(parts, folder, tmp_path, capsys):
    model, processor = compose(parts, "conv")
    model.save_pretrained(tmp_path / "conv")
    processor.save_pretrained(tmp_path / "conv")
    capsys.readouterr()
    command = ["transcribe", str(folder / "one.wav"), "--model", str(tmp_path / "conv"), "--timestamps", "word"]
    assert main(command) == 2
    assert "use --timestamps segment" in capsys.readouterr().err


def test_wrong_usage_ends_with_status_2(capsys):
    for arguments in ([], ["a.wav", "--model", "m", "--dtype", "int7"], ["a.wav", "--model", "m", "--format", "doc"]):
        with pytest.raises(SystemExit) as stop:
            main(["transcribe", *arguments])
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "transcribe" in capsys.readouterr().out


def test_a_folder_does_not_count_as_a_transcript(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "two.txt").mkdir(parents=True)
    assert main(["transcribe", str(folder), "--model", checkpoint, "--output-dir", str(out)]) == 1
    message = capsys.readouterr().err
    assert "transcribed before" not in message
    assert "two.txt' is a folder" in message
    assert (out / "one.txt").is_file()


def test_a_link_in_the_output_folder_is_not_written_through(checkpoint, folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "two.txt.partial").symlink_to(secret)
    assert main(["transcribe", str(folder), "--model", checkpoint, "--output-dir", str(out)]) == 0
    assert secret.read_text() == "mine"


def test_names_need_not_be_utf_8(checkpoint, folder, tmp_path, capsys):
    """File names on old disks may have any bytes. Such a name must not stop the other files."""
    name = os.fsdecode("grabación.wav".encode("latin-1"))
    (folder / "two.flac").rename(folder / name)
    (folder / os.fsdecode(b"bad\xff.mp3")).write_bytes(b"ID3 and no more")
    out = tmp_path / "out"
    options = ["--output-dir", str(out), "--format", "json", "txt"]
    assert main(["transcribe", str(folder), "--model", checkpoint, *options]) == 1
    message = capsys.readouterr().err
    assert "1 of 4 could not be transcribed" in message
    assert "bad\N{REPLACEMENT CHARACTER}.mp3" in message
    found = json.loads((out / name).with_suffix(".json").read_text())
    assert found["file"].endswith("grabaci\N{REPLACEMENT CHARACTER}n.wav")
    assert (out / "one.txt").is_file()
