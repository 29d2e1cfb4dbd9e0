"""Transcribing datasets with several processes, one of which is killed."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import transcribe_dataset
from datasets import Dataset, load_dataset
from speech_files import write_speech_dataset
from tiny_models import compose
from transformers import pipeline

from llm_asr import dataset_transcription


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = compose(parts, "moe_cif")
    model.generation_config.max_new_tokens = 6
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch):
    def run(*arguments):
        command = ["transcribe_dataset.py", "--model", checkpoint, "--output", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr("sys.argv", command)
        transcribe_dataset.main()
        return read(tmp_path / "out")

    return run


def read(folder):
    rows = load_dataset(
        "parquet", data_files=str(folder / "*.parquet"), split="train", cache_dir=str(folder / "cache")
    )
    return sorted(rows.to_list(), key=lambda row: (row["shard"], row["row"]))


def test_rows_have_the_output_of_the_pipeline(run, checkpoint, tmp_path):
    file = write_speech_dataset(tmp_path / "speech", size=6)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    (tmp_path / "speech" / "1.wav").write_bytes(b"RIFF, and then nothing that is sound")
    lines[4]["audio"] = None
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = run("--dataset", str(file), "--shard-size", "4", "--language-column", "language", "--timestamps", "word")

    transcriber = pipeline("automatic-speech-recognition", model=checkpoint)
    assert [row["text"] for row in rows] == [line["text"] for line in lines]
    assert "audio" not in rows[0]
    for index, row in enumerate(rows):
        if index in (1, 4):
            assert row["transcript"] is None
            assert row["error"]
            continue
        expected = transcriber(
            str(tmp_path / "speech" / f"{index}.wav"), language=row["language"], return_timestamps="word"
        )
        assert row["error"] is None
        assert (row["transcript"], row["transcript_language"]) == (expected["text"], expected["language"])
        assert [(chunk["text"], (chunk["start"], chunk["end"])) for chunk in row["transcript_chunks"]] == [
            (chunk["text"], pytest.approx(chunk["timestamp"])) for chunk in expected["chunks"]
        ]
    assert "1.wav" in rows[1]["error"]


def test_one_language_for_all_rows_and_their_times(run, checkpoint, tmp_path, capsys, monkeypatch):
    timed = []
    time_transcription = dataset_transcription.time_transcription

    def watch(transcriber, rows, options):
        timed.append([row["text"] for row in rows])
        return time_transcription(transcriber, rows, options)

    monkeypatch.setattr(dataset_transcription, "time_transcription", watch)
    file = write_speech_dataset(tmp_path / "speech", size=5)
    (tmp_path / "speech" / "1.wav").write_bytes(b"RIFF, and then nothing that is sound")
    rows = run("--dataset", str(file), "--shard-size", "2", "--batch-size", "1", "--language", "es", "--timing")
    transcriber = pipeline("automatic-speech-recognition", model=checkpoint)
    for index, row in enumerate(rows):
        if index == 1:
            assert "1.wav" in row["error"]
            assert (row["transcript"], row["duration"], row["time"]) == (None, None, None)
            continue
        assert row["transcript"] == transcriber(str(tmp_path / "speech" / f"{index}.wav"), language="es")["text"]
        assert row["duration"] == pytest.approx(0.3 * len(row["text"].split()))
        assert row["time"] > 0
    # The first batch warms up, and each file is transcribed once.
    texts = [row["text"] for row in rows]
    assert timed == [texts[:1], texts[:2], texts[2:4], texts[4:]]
    # The recordings of a file share its time.
    assert rows[2]["time"] == rows[3]["time"] != rows[4]["time"]
    with pytest.raises(SystemExit):
        run("--dataset", str(file), "--language", "es", "--language-column", "language")
    assert "set only one of them" in capsys.readouterr().err


def test_streams_resume_within_a_file_and_settings_must_not_change(run, tmp_path, capsys):
    speech = [json.loads(line) for line in write_speech_dataset(tmp_path / "speech", size=7).read_text().splitlines()]
    rows = [{**line, "audio": str(tmp_path / "speech" / line["audio"]), "id": i} for i, line in enumerate(speech)]
    for name, part in (("a", rows[:5]), ("b", rows[5:])):
        (tmp_path / "parquet").mkdir(exist_ok=True)
        Dataset.from_list(part).to_parquet(tmp_path / "parquet" / f"{name}.parquet")
    options = ("--dataset", str(tmp_path / "parquet"), "--streaming", "--shard-size", "2")
    expected = run(*options)
    assert [(row["shard"], row["row"], row["id"]) for row in expected] == [
        *((0, i, i) for i in range(5)),
        *((1, i, 5 + i) for i in range(2)),
    ]
    kept = tmp_path / "out" / "part-00000-00000.parquet"
    written = kept.stat().st_mtime_ns
    (tmp_path / "out" / "part-00000-00002.parquet").unlink()
    (tmp_path / "out" / "part-00001-00000.parquet").rename(tmp_path / "out" / "part-00001-00000.partial")
    assert run(*options) == expected
    assert kept.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="was started with another timestamps; choose another `output`"):
        run(*options, "--timestamps", "word")


@pytest.mark.slow
def test_a_killed_process_skips_and_repeats_no_row(run, checkpoint, tmp_path):
    file = write_speech_dataset(tmp_path / "speech", size=64)
    options = ["--dataset", str(file), "--shard-size", "2", "--batch-size", "1"]
    output = tmp_path / "killed"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [transcribe_dataset.__file__, "--model", checkpoint, "--output", str(output), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*launcher, *script], env=environment, stderr=subprocess.DEVNULL) as process:
        while not list(output.glob("part-00001-*.parquet")):
            assert process.poll() is None
            time.sleep(0.05)
        workers = [child for child in psutil.Process(process.pid).children() if script[0] in child.cmdline()]
        assert len(workers) == 2
        workers[1].kill()
        assert process.wait(timeout=60) != 0
    finished = {part.name: part.stat().st_mtime_ns for part in output.glob("*.parquet")}
    assert 0 < len(finished) < 32

    subprocess.run([*launcher, *script], env=environment, check=True, capture_output=True)
    found = read(output)
    assert [(row["shard"], row["row"]) for row in found] == [(i // 2, i % 2) for i in range(64)]
    assert found == run(*options)
    assert finished.items() <= {part.name: part.stat().st_mtime_ns for part in output.glob("*.parquet")}.items()


def test_impossible_sizes_are_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--dataset", "nowhere.jsonl", "--shard-size", "0")
    assert "`shard_size` must be positive, got 0" in capsys.readouterr().err
