"""`llm-asr align`."""

import json

import pytest
import soundfile
from tiny_models import compose
from transformers import pipeline

from llm_asr.cli import main


@pytest.fixture(scope="module")
def checkpoints(parts, tmp_path_factory):
    folders = {}
    for projector_type in ("conv", "cif"):
        folders[projector_type] = str(tmp_path_factory.mktemp(projector_type))
        for part in compose(parts, projector_type):
            part.save_pretrained(folders[projector_type])
    return folders


@pytest.fixture
def recording(recordings, tmp_path):
    soundfile.write(tmp_path / "one.wav", recordings[2], 16000)
    return str(tmp_path / "one.wav")


def test_words_on_the_terminal_and_in_files(checkpoints, recording, tmp_path, capsys):
    expected = pipeline("automatic-speech-recognition", model=checkpoints["cif"])(recording, text="uno dos")
    assert main(["align", recording, "uno dos", "--model", checkpoints["cif"]]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[3] for line in lines] == ["uno", "dos"]
    assert [float(line[0]) for line in lines] == [chunk["timestamp"][0] for chunk in expected["chunks"]]
    (tmp_path / "text.txt").write_text("\ufeffuno dos\n", encoding="utf-8")
    for name in ("json", "srt"):
        output = tmp_path / f"out.{name}"
        arguments = ["--text-file", str(tmp_path / "text.txt"), "--format", name, "--output", str(output)]
        assert main(["align", recording, *arguments, "--model", checkpoints["cif"]]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["chunks"][0]["confidence"] == float(lines[0][2])
    assert "-->" in (tmp_path / "out.srt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.wav"], "Pass either TEXT or --text-file"),
        (["one.wav", "uno", "--text-file", "text.txt"], "Pass either TEXT or --text-file"),
        (["one.wav", " "], "The text has no word"),
        (["one.wav", "--text-file", "nowhere.txt"], "--text-file 'nowhere.txt' cannot be read"),
        (["nowhere.wav", "uno"], "'nowhere.wav' is not a file"),
        (["one.wav", "uno", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["one.wav", "uno"], "need a projector with CIF ('cif' or 'moe_cif'), but this model's projector is 'conv'"),
    ],
)
def test_texts_that_cannot_be_aligned_end_with_status_2(
    checkpoints, recording, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["align", *arguments, "--model", checkpoints["conv"]]) == 2
    assert message in capsys.readouterr().err
