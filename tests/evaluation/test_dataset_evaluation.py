"""The report of `llm-asr evaluate`, on a tiny random model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speech_files import write_speech_dataset
from tiny_models import compose

from llm_asr.cli import main
from llm_asr.evaluation import dataset_evaluation


def save_model(parts, folder, projector_type, alpha_bias=None):
    model, processor = compose(parts, projector_type)
    if alpha_bias is not None:
        model.model.projector.cif.alpha_proj.bias.data.fill_(alpha_bias)
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture
def run(parts, tmp_path, monkeypatch):
    """Saves a model and a dataset. Call it to evaluate the model. Its `transcribed` has the rows of each call."""
    dataset, output = write_speech_dataset(tmp_path / "speech"), tmp_path / "report" / "test.json"
    transcribe = dataset_evaluation.transcribe

    def watch(transcriber, dataset, rows, *args):
        run.transcribed.append([row["row"] for row in rows])
        # Rows in memory do not contain their recordings.
        assert all("audio" not in row for row in rows)
        return transcribe(transcriber, dataset, rows, *args)

    monkeypatch.setattr(dataset_evaluation, "transcribe", watch)

    def run(*arguments):
        fixed = ["--model", str(tmp_path / "model"), "--dataset", str(dataset), "--output", str(output)]
        assert main(["evaluate", *fixed, "--batch-size", "3", *arguments]) == 0
        return json.loads(output.read_text())

    run.arguments = ["--model", str(tmp_path / "model"), "--dataset", str(dataset), "--batch-size", "3"]
    run.output, run.dataset, run.model, run.transcribed = output, dataset, tmp_path / "model", []
    run.kept = output.with_name("test.hypotheses.jsonl")
    return run


@pytest.mark.parametrize("projector_type", ["conv", "moe", "moe_cif"])
def test_the_report_depends_on_the_type_of_projector(parts, run, capsys, projector_type):
    save_model(parts, run.model, projector_type)
    report = run()
    assert set(report["error_rates"]) == {"en", "es", "all"}
    assert report["error_rates"]["all"]["recordings"] == len(report["recordings"]) == 8
    assert ("lengths" in report) == (projector_type == "moe_cif")
    assert ("expert_usage" in report) == (projector_type != "conv")
    pictures = list(run.output.parent.glob("*.png"))
    assert [picture.name for picture in pictures] == ["test-projector.moe.png"] * (projector_type != "conv")
    printed, markdown = capsys.readouterr().out, run.output.with_suffix(".md").read_text()
    for text in ("Error rates", "Languages identified by the model", "S/I/D %", "one two"):
        assert text in printed
        assert text in markdown
    if projector_type != "conv":
        usage = report["expert_usage"]["projector.moe"]
        assert sum(usage["shares"]["es"]) == pytest.approx(1)
        assert len(usage["shares"]["all"]) == 4
        assert "mutual information" in printed


@pytest.mark.parametrize("has_weight", [True, False])
def test_word_boundaries_of_recognised_and_given_text(parts, run, capsys, has_weight):
    # With this bias, CIF gives no frame any weight.
    save_model(parts, run.model, "cif", alpha_bias=None if has_weight else -1e4)
    rows = [json.loads(line) for line in run.dataset.read_text().splitlines()]
    for row in rows:
        row["words"] = [
            {"word": word, "start": 0.3 * index, "end": 0.3 * (index + 1)}
            for index, word in enumerate(row["text"].split())
        ]
    run.dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run()
    # The random model recognises no recording, but the given text always has its own words.
    assert report["boundaries"] == {}
    if not has_weight:
        assert report["given_boundaries"] == {}
        return
    assert {name: found["recordings"] for name, found in report["given_boundaries"].items()} == {
        "en": 4,
        "es": 4,
        "all": 8,
    }
    assert 0 < report["given_boundaries"]["all"]["boundary_error_ms"] < 900
    assert "Word boundaries of the given transcripts" in capsys.readouterr().out


def test_datasets_and_silences_are_reported_separately(parts, run):
    save_model(parts, run.model, "conv")
    rows = [json.loads(line) for line in run.dataset.read_text().splitlines()]
    for index, row in enumerate(rows):
        row["dataset"] = "ab"[index % 2]
    rows[-1]["text"] = ""
    run.dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run("--normalizer", "whisper")
    assert {name: found["recordings"] for name, found in report["error_rates_by_dataset"].items()} == {
        "a": 4,
        "b": 3,
        "all": 7,
    }
    assert report["silence"]["recordings"] == 1
    assert report["normalizer"] == "whisper"


def test_silences_without_a_dataset_have_no_error_rates(parts, run):
    save_model(parts, run.model, "moe_cif")
    rows = [json.loads(line) for line in run.dataset.read_text().splitlines()]
    run.dataset.write_text("".join(json.dumps({**row, "text": ""}) + "\n" for row in rows))
    report = run()
    assert report["silence"]["recordings"] == 8
    assert "error_rates" not in report


def test_an_interrupted_run_continues_where_it_stopped(parts, run, capsys):
    save_model(parts, run.model, "moe_cif")
    report = run()
    header, *lines = run.kept.read_text().splitlines(keepends=True)
    assert len(lines) == 8
    # The main process was killed while it wrote a line, a second one after a line, and a third one before its first line.
    run.kept.write_text("".join([header, *lines[:3], lines[3][:20]]))
    run.kept.with_name("test.hypotheses-1.jsonl").write_text(header + lines[5])
    run.kept.with_name("test.hypotheses-2.jsonl").write_text("")
    capsys.readouterr()
    assert run() == report
    assert len(run.transcribed[1]) == 4
    assert "4 of 8 hypotheses are in" in capsys.readouterr().out.replace("\n", " ")
    kept = [json.loads(line) for line in run.kept.read_text().splitlines()[1:]]
    assert sorted(line["row"] for line in kept) == list(range(8))
    assert [file.name for file in run.output.parent.glob("*.jsonl")] == [run.kept.name]
    # Another normaliser uses the same hypotheses.
    assert run("--normalizer", "whisper")["error_rates"].keys() == report["error_rates"].keys()
    run("--overwrite")
    assert [len(rows) for rows in run.transcribed[2:]] == [0, 8]


def test_hypotheses_of_another_model_are_not_reused(parts, run, capsys):
    save_model(parts, run.model, "conv")
    run()
    save_model(parts, run.model, "conv")
    run()
    assert "made with another model files" in capsys.readouterr().out.replace("\n", " ")
    run("--tell-language")
    assert "made with another --tell-language" in capsys.readouterr().out.replace("\n", " ")
    assert [len(rows) for rows in run.transcribed] == [8, 8, 8]


def test_int8_computes_in_8_bits_and_is_another_run(parts, run, capsys, monkeypatch):
    save_model(parts, run.model, "moe_cif")
    kinds = []
    report = dataset_evaluation.write_report
    monkeypatch.setattr(
        dataset_evaluation,
        "write_report",
        lambda options, transcriber, *rest: [
            kinds.append({type(module).__name__ for module in transcriber.model.model.language_model.modules()}),
            report(options, transcriber, *rest),
        ],
    )
    assert run("--dtype", "int8")["error_rates"]["all"]["recordings"] == 8
    assert "LinearPackedParams" in kinds[0]
    run()
    assert "made with another --dtype" in capsys.readouterr().out.replace("\n", " ")
    assert [len(rows) for rows in run.transcribed] == [8, 8]


def test_bad_arguments_are_refused(parts, run, capsys):
    assert main(["evaluate", *run.arguments, "--output", "report.md"]) == 2
    assert "must end in .json; other files are named after it" in capsys.readouterr().err


def test_without_matplotlib_a_model_with_experts_is_refused_before_transcribing(parts, run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    save_model(parts, run.model, "moe")
    assert main(["evaluate", *run.arguments, "--output", str(run.output)]) == 2
    assert 'need matplotlib: `pip install "llm-asr[train]"`' in capsys.readouterr().err
    assert run.transcribed == []
    # Without experts there is no picture to draw.
    save_model(parts, run.model, "conv")
    run()


@pytest.mark.slow
def test_two_processes_report_the_same_as_one(parts, run, tmp_path):
    save_model(parts, run.model, "moe_cif")
    one = run()
    output = tmp_path / "two" / "test.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [sys.executable, *launcher, "-m", "llm_asr", "evaluate", *run.arguments, "--output", str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Error rates") == 1
    two = json.loads(output.read_text())
    assert two["recordings"] == one["recordings"]
    assert two["error_rates"] == one["error_rates"]
    assert two["lengths"]["all"] == pytest.approx(one["lengths"]["all"])
    shares = [report["expert_usage"]["projector.moe"]["shares"]["all"] for report in (one, two)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-6)
    kept = [Path(output.parent / f"test.hypotheses{suffix}.jsonl").read_text() for suffix in ("", "-1")]
    assert [len(text.splitlines()) for text in kept] == [5, 5]


def test_recordings_longer_than_the_window_are_in_every_report(parts, run):
    """Such recordings are transcribed and measured in the same segments."""
    save_model(parts, run.model, "moe_cif")
    rows = [json.loads(line) for line in run.dataset.read_text().splitlines()]
    generator = np.random.default_rng(0)
    soundfile.write(run.dataset.parent / "1.wav", 0.1 * generator.standard_normal(16000 * 7), 16000)
    report = run()
    assert report["error_rates"]["all"]["recordings"] == len(rows)
    assert report["lengths"]["all"]["embeddings_per_second"] > 0
    assert sum(report["expert_usage"]["projector.moe"]["shares"]["all"]) == pytest.approx(1)
