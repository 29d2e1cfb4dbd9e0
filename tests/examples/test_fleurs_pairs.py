"""The example that joins two languages of FLEURS, on a copy of its layout."""

import runpy
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from llm_asr.datasets_asr import load_asr_dataset


SCRIPT = Path(__file__).parents[2] / "examples/recipes/fleurs_pairs.py"


@pytest.fixture
def fleurs(tmp_path):
    """A folder with two configurations. A sentence is read by several speakers, and each language lacks some."""
    sentences = {
        "es_419": [(7, "uno dos"), (7, "uno dos"), (8, "tres"), (9, "cuatro")],
        "en_us": [(7, "one two"), (9, "four")],
    }
    lines = ["---", "configs:"]
    for name, rows in sentences.items():
        (tmp_path / name).mkdir()
        Dataset.from_list(
            [
                {"id": number, "audio": f"{name}-{index}.wav", "transcription": text}
                for index, (number, text) in enumerate(rows)
            ]
        ).to_parquet(tmp_path / name / "train.parquet")
        lines += [f"- config_name: {name}", f"  data_files: {name}/train.parquet"]
    (tmp_path / "README.md").write_text("\n".join([*lines, "---"]) + "\n")
    return tmp_path


def test_recordings_get_the_sentence_of_the_other_language(fleurs, monkeypatch, capsys):
    output = fleurs / "out"
    options = ["--dataset", str(fleurs), "--source", "es_419", "--target", "en_us", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = load_asr_dataset(str(output)).to_list()
    assert [(row["text"], row["translation"]) for row in rows] == [
        ("uno dos", "one two"),
        ("uno dos", "one two"),
        ("cuatro", "four"),
    ]
    assert {(row["language"], row["target_language"]) for row in rows} == {("es_419", "en_us")}
    assert "3 of 4 recordings have a translation" in capsys.readouterr().out
