"""The example that joins utterances of several languages."""

import json

import numpy as np
import pytest
import soundfile
from mix_languages import mix, mix_dataset
from speech_files import write_speech_dataset

from llm_asr.cli import main


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_parts_follow_one_another_with_their_words():
    sounds = [np.ones(16000, np.float32), np.full(8000, 2, np.float32)]
    rows = [
        {"text": "one", "language": "en", "words": [{"word": "one", "start": 0.1, "end": 0.9}]},
        {"text": "uno dos", "language": "es", "words": [{"word": "uno dos", "start": 0.0, "end": 0.5}]},
    ]
    row, sound = mix(list(zip(rows, sounds, strict=True)), [0.25])
    assert row["text"] == "one uno dos"
    assert row["language"] == "es,en"
    assert [word["language"] for word in row["word_languages"]] == ["en", "es", "es"]
    assert [(word["start"], word["end"]) for word in row["words"]] == [(0.1, 0.9), (1.25, 1.75)]
    assert row["duration"] == len(sound) / 16000 == 1.75
    assert sound[15999] == 1
    assert sound[16000] == 0
    assert sound[20000] == 2


def test_a_dataset_is_mixed_trained_on_and_evaluated(parts, tmp_path, capsys):
    dataset = write_speech_dataset(tmp_path / "speech")
    for folder in ("mixed", "again"):
        mix_dataset(dataset, tmp_path / folder, "test", 6, seed=1)
    file = tmp_path / "mixed" / "test.jsonl"
    rows = read(file)
    assert rows == read(tmp_path / "again" / "test.jsonl")
    assert len(rows) == 6
    for row in rows:
        assert set(row["language"].split(",")) == {"en", "es"}
        assert " ".join(word["word"] for word in row["word_languages"]) == row["text"]
        assert soundfile.info(tmp_path / "mixed" / row["audio"]).duration == pytest.approx(row["duration"])

    recipe = {
        "audio_model": parts["whisper"],
        "text_model": parts["qwen2"],
        "projector_type": "conv",
        "projector": {"hidden_size": 32, "intermediate_size": 48},
        "train_dataset": str(dataset),
        "output_dir": str(tmp_path / "run"),
        "do_train": True,
        "max_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert main(["train", str(tmp_path / "recipe.json")]) == 0
    output = tmp_path / "report.json"
    arguments = ["--model", str(tmp_path / "run"), "--dataset", str(file), "--output", str(output)]
    assert main(["evaluate", *arguments]) == 0
    report = json.loads(output.read_text())
    assert set(report["word_languages"]) == {"en", "es", "all"}
    assert report["languages"]["all"]["recordings"] == 6
    assert "Errors by the language of the word" in capsys.readouterr().out


def test_one_language_cannot_be_mixed(tmp_path):
    dataset = write_speech_dataset(tmp_path / "speech", 2)
    with pytest.raises(ValueError, match="has 1 language"):
        mix_dataset(dataset, tmp_path / "mixed", "test", 1)
