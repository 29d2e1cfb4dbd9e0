"""The script behind `make try`, with a slim checkpoint whose frozen parts lie in relative folders."""

import json

import try_open_model
from speech_files import write_speech_dataset
from tiny_models import compose

from llm_asr.publishing.checkpoint_forms import save_checkpoint


def test_sentences_and_files_are_transcribed_from_a_slim_checkpoint(parts, tmp_path, monkeypatch, capsys):
    model, processor = compose(parts, "moe_cif", draft_head=True)
    model.generation_config.max_new_tokens = 6
    save_checkpoint(model, processor, tmp_path / "model", form="slim")
    dataset = write_speech_dataset(tmp_path / "speech", size=4)
    rows = [json.loads(line) for line in dataset.read_text(encoding="utf-8").splitlines()]
    options = ["--model", str(tmp_path / "model"), "--dataset", str(dataset)]

    monkeypatch.setattr("sys.argv", ["try_open_model.py", *options, "--sentences", "3"])
    try_open_model.main()
    said = [line.split("said:")[1].strip() for line in capsys.readouterr().out.splitlines() if "said:" in line]
    assert len(said) == 3
    assert set(said) <= {row["text"] for row in rows}

    file = str(dataset.parent / rows[0]["audio"])
    monkeypatch.setattr("sys.argv", ["try_open_model.py", *options, file])
    try_open_model.main()
    out = capsys.readouterr().out
    assert file in out
    assert "heard:" in out
    assert "said:" not in out
