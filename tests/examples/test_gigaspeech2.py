"""Converting GigaSpeech 2 for a recipe."""

import importlib.util
import io
import sys
import tarfile
from pathlib import Path

import pytest
import soundfile

from llm_asr.training.data_mixing import load_mixture


SCRIPT = Path(__file__).parents[2] / "examples/recipes/paper/gigaspeech2.py"


def run(monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location("gigaspeech2", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    script.main()


@pytest.fixture
def source(tmp_path, recordings):
    """A copy of the repository with only Thai."""
    folder = tmp_path / "source/data/th"
    (folder / "train").mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / f"train/{number}.tar.gz", "w:gz") as archive:
            for index, recording in enumerate(recordings):
                file = io.BytesIO()
                soundfile.write(file, recording, 16000, format="WAV")
                member = tarfile.TarInfo(f"./{number}/{index}/{number}-{index}-0.wav")
                member.size = len(file.getvalue())
                archive.addfile(member, io.BytesIO(file.getvalue()))
    lines = [f"{number}-{index}-0\tสวัสดี {number} {index}\n" for number in range(2) for index in range(2)]
    (folder / "train_refined.tsv").write_text("".join(lines), encoding="utf-8")
    return tmp_path / "source"


def test_archives_and_transcripts_become_a_dataset(monkeypatch, tmp_path, source):
    output = tmp_path / "gigaspeech2"
    run(monkeypatch, "th", "--source", source, "--output", output)
    rows = load_mixture([{"dataset": str(output / "th"), "language": "th"}])
    # Recordings without a refined transcript are left out.
    assert sorted(rows["text"]) == ["สวัสดี 0 0", "สวัสดี 0 1", "สวัสดี 1 0", "สวัสดี 1 1"]
    assert set(rows["language"]) == {"th"}
    written = {file: file.stat().st_mtime_ns for file in output.rglob("*.parquet")}
    (output / "th/train-1.parquet").unlink()
    run(monkeypatch, "th", "--source", source, "--output", output)
    assert (output / "th/train-1.parquet").is_file()
    assert (output / "th/train-0.parquet").stat().st_mtime_ns == written[output / "th/train-0.parquet"]
