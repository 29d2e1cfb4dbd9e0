"""The report of `examples/evaluate.py`, on a tiny random model."""

import json
import sys

import evaluate
import pytest
from speech_files import write_speech_dataset
from tiny_models import compose


@pytest.mark.parametrize("projector_type", ["conv", "moe", "moe_cif"])
def test_the_report_has_what_the_projector_has(parts, tmp_path, monkeypatch, capsys, projector_type):
    model, processor = compose(parts, projector_type)
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    dataset, output = write_speech_dataset(tmp_path / "speech"), tmp_path / "report" / "test.json"
    arguments = ["--model", str(tmp_path / "model"), "--dataset", str(dataset), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--batch-size", "3"])
    evaluate.main()
    report = json.loads(output.read_text())
    assert set(report["error_rates"]) == {"en", "es", "all"}
    assert report["error_rates"]["all"]["recordings"] == len(report["recordings"]) == 8
    assert ("lengths" in report) == (projector_type == "moe_cif")
    assert ("expert_usage" in report) == (projector_type != "conv")
    pictures = list(output.parent.glob("*.png"))
    assert [picture.name for picture in pictures] == ["test-projector.moe.png"] * (projector_type != "conv")
    if projector_type != "conv":
        usage = report["expert_usage"]["projector.moe"]
        assert sum(usage["shares"]["es"]) == pytest.approx(1)
        assert len(usage["shares"]["all"]) == 4
        assert "mutual information" in capsys.readouterr().out
