"""The cache exports a checkpoint once for each content."""

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


def test_each_content_is_exported_once(checkpoint, tmp_path):
    cache = tmp_path / "cache"
    exported = export_cached(str(checkpoint), cache)
    LlmAsrFrontEnd.from_pretrained(exported / "front_end")
    LlmAsrProcessor.from_pretrained(exported / "front_end")
    AutoModelForCausalLM.from_pretrained(exported / "language_model")
    before = written(cache)
    assert export_cached(str(checkpoint), cache) == exported
    # The folder's place and the files of a training run in it do not matter.
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    (moved / "optimizer.pt").write_bytes(b"state")
    assert export_cached(str(moved), cache) == exported
    assert written(cache) == before
    weights = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert export_cached(str(checkpoint), cache) != exported
    assert len(list(cache.glob("[!.]*"))) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "a bit",
        "a missing file",
        "a cut file",
        "no digests",
        "a template",
        "another token",
        "no tokenizer",
        "damaged digests",
    ],
)
def test_a_damaged_export_is_replaced(checkpoint, tmp_path, damage):
    cache = tmp_path / "cache"
    exported = export_cached(str(checkpoint), cache)
    whole = {file.relative_to(exported): file.read_bytes() for file in exported.rglob("*") if file.is_file()}
    file = exported / "language_model/model.safetensors"
    contents = file.read_bytes()
    if damage == "a bit":
        file.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    elif damage == "a cut file":
        file.write_bytes(contents[:-100])
    elif damage == "a missing file":
        file.unlink()
    elif damage == "a template":
        (exported / "front_end/chat_template.jinja").write_text("{{ bos_token }}")
    elif damage == "another token":
        path = exported / "language_model/tokenizer.json"
        path.write_text(path.read_text().replace("<|im_end|>", "<|im_stop|>"))
    elif damage == "no tokenizer":
        (exported / "front_end/tokenizer.json").unlink()
    elif damage == "damaged digests":
        (exported / "front_end/SHA256SUMS").write_bytes(b"\xff")
    else:
        (exported / "front_end/SHA256SUMS").unlink()
    assert export_cached(str(checkpoint), cache) == exported
    assert whole == {file.relative_to(exported): file.read_bytes() for file in exported.rglob("*") if file.is_file()}


def test_leftovers_of_a_killed_export_are_removed(checkpoint, tmp_path):
    cache = tmp_path / "cache"
    name = export_cached(str(checkpoint), cache).name
    shutil.rmtree(cache / name)
    leftover = cache / f".{name}.abcdef"
    (leftover / name).mkdir(parents=True)
    (leftover / name / "half").write_text("a folder")
    export_cached(str(checkpoint), cache)
    assert not leftover.exists()


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
    # Changed LoRA weights change the checksum, also in a subfolder.
    before = checksum([tmp_path / form])
    (weights,) = (tmp_path / form).rglob("adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert checksum([tmp_path / form]) != before


def test_another_family_is_refused(parts, tmp_path):
    with pytest.raises(ValueError, match="a model of type 'whisper', and 'llm_asr' is expected"):
        export_cached(parts["whisper"], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
