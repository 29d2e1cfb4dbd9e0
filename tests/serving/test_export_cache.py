"""Checkpoints are exported once for each content."""

import shutil

import pytest
import torch
from tiny_models import compose
from transformers import AutoModelForCausalLM

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.publishing.checkpoint_forms import save_checkpoint
from llm_asr.publishing.front_end import LlmAsrFrontEnd
from llm_asr.serving.export_cache import checksum, export_cached
from llm_asr.training.lora import add_lora


@pytest.fixture
def checkpoint(parts, tmp_path):
    model, processor = compose(parts, "cif")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def written(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_once_for_each_content(checkpoint, tmp_path):
    cache = tmp_path / "cache"
    exported = export_cached(str(checkpoint), cache)
    LlmAsrFrontEnd.from_pretrained(exported / "front_end")
    LlmAsrProcessor.from_pretrained(exported / "front_end")
    AutoModelForCausalLM.from_pretrained(exported / "language_model")
    before = written(cache)
    assert export_cached(str(checkpoint), cache) == exported
    # Wherever it is, and whatever training has left beside it.
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    (moved / "optimizer.pt").write_bytes(b"state")
    assert export_cached(str(moved), cache) == exported
    assert written(cache) == before
    weights = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert export_cached(str(checkpoint), cache) != exported
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("form", ["adapter", "slim"])
def test_every_form_of_a_checkpoint(checkpoint, parts, tmp_path, form):
    cache = tmp_path / "cache"
    model = LlmAsrForConditionalGeneration.from_pretrained(checkpoint)
    backbones = {"audio_tower": parts["whisper"], "language_model": parts["qwen2"]}
    options = {"backbones": backbones} if form == "slim" else {"base": str(checkpoint)}
    adapted = add_lora(model, rank=2, dropout=0.0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    processor = LlmAsrProcessor.from_pretrained(checkpoint)
    save_checkpoint(adapted, processor, tmp_path / form, form, **options)
    exported = export_cached(str(tmp_path / form), cache)
    found = AutoModelForCausalLM.from_pretrained(exported / "language_model").model.state_dict()
    expected = adapted.merge_and_unload().model
    for name, weight in expected.language_model.state_dict().items():
        torch.testing.assert_close(found[name], weight)
    found = LlmAsrFrontEnd.from_pretrained(exported / "front_end").projector.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.projector.state_dict().items())
    # Factors may lie in a folder of their own.
    before = checksum([tmp_path / form])
    (weights,) = (tmp_path / form).rglob("adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert checksum([tmp_path / form]) != before


def test_another_family_is_refused(parts, tmp_path):
    with pytest.raises(ValueError, match="a model of type 'whisper', and 'llm_asr' is expected"):
        export_cached(parts["whisper"], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
