"""The three forms of a checkpoint: their contents, and that each loads as the same model."""

import hashlib
import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from peft import PeftModel
from safetensors.torch import load_file
from same_models import TEXTS, add_trained_lora, check_same, check_same_weights, own_tensors, randomize
from tiny_models import compose
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    TorchAoConfig,
    WhisperForConditionalGeneration,
    pipeline,
)

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrModel, LlmAsrPipeline, LlmAsrProcessor
from llm_asr.modeling import loading_llm_asr
from llm_asr.publishing.checkpoint_forms import FORMS, find_form, save_checkpoint
from llm_asr.training.lora import add_lora


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_load_as_the_same_model(saved, recordings, form, text):
    model, processor, root = saved[text]
    assert find_form(root / form) == form
    # Merging at saving and merging at loading give the same bits.
    expected = model
    if form != "adapter":
        expected = LlmAsrForConditionalGeneration.from_pretrained(root / "base")
        expected = PeftModel.from_pretrained(expected, root / "adapter").merge_and_unload()
    for auto_class in (LlmAsrForConditionalGeneration, AutoModelForSpeechSeq2Seq):
        loaded = auto_class.from_pretrained(root / form)
        assert type(loaded) is LlmAsrForConditionalGeneration
        check_same(expected, loaded, processor, recordings)
        assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    headless = AutoModel.from_pretrained(root / form)
    assert type(headless) is LlmAsrModel
    inputs = processor.apply_transcription_request(recordings)
    with torch.no_grad():
        hidden_states = expected(**inputs, output_hidden_states=True).hidden_states[-1]
        headless.eval().requires_grad_(False)
        torch.testing.assert_close(headless(**inputs).last_hidden_state, hidden_states)
    assert type(AutoProcessor.from_pretrained(root / form)) is LlmAsrProcessor
    transcribed = pipeline("automatic-speech-recognition", model=str(root / form))(recordings, max_new_tokens=8)
    assert transcribed == LlmAsrPipeline(model=expected, processor=processor)(recordings, max_new_tokens=8)


@pytest.mark.parametrize("text", TEXTS)
def test_slim_contains_the_trained_weights(parts, tmp_path, text):
    model, processor = compose(parts, "moe_cif", text=text, draft_head=True)
    save_checkpoint(randomize(model), processor, tmp_path / "slim", form="slim")
    save_checkpoint(model, processor, tmp_path / "full")
    own = own_tensors(tmp_path / "slim")
    trained = {name for name in model.state_dict() if "projector" in name or "draft_head" in name}
    embeddings = {"model.language_model.embed_tokens.weight"} | ({"lm_head.weight"} if text == "qwen2" else set())
    rows = {f"{name}{end}" for name in embeddings for end in (":rows", ":values")}
    assert set(own) == trained | rows
    # Only the row of the audio token is saved.
    for name in embeddings:
        assert own[f"{name}:rows"].tolist() == [model.config.audio_token_id]
    references = json.loads((tmp_path / "slim/config.json").read_text())["backbones"]
    for part, folder in (("audio_tower", parts["whisper"]), ("language_model", parts[text])):
        digests = {
            name: hashlib.sha256(Path(folder, name).read_bytes()).hexdigest()
            for name in ("config.json", "model.safetensors")
        }
        assert references[part] == {"name_or_path": folder, "revision": None, "dtype": "float32", "sha256": digests}
    size = sum(tensor.nbytes for tensor in own.values())
    assert size == sum(tensor.nbytes for name, tensor in model.state_dict().items() if name in trained) + len(
        embeddings
    ) * (8 + 4 * model.config.text_config.hidden_size)
    assert (tmp_path / "slim/model.safetensors").stat().st_size < size + 4000


def test_every_changed_weight_is_kept_exactly(parts, tmp_path, monkeypatch):
    model, processor = compose(parts, "conv")
    audio_tower, language_model = model.model.audio_tower, model.model.language_model
    with torch.no_grad():
        audio_tower.layers[0].fc1.weight += 1e-3
        audio_tower.conv1.bias[3] += 1e-3
        language_model.layers[1].mlp.up_proj.weight[5] += 1e-3
        language_model.embed_tokens.weight[[7, 9]] *= 2
        # The two zeros are equal as numbers.
        assert bool((audio_tower.layers[0].self_attn_layer_norm.bias == 0).all())
        audio_tower.layers[0].self_attn_layer_norm.bias[0] = -0.0
        language_model.norm.weight[1] = torch.nan
        # A zero row is the initial value of a row that the original part does not have.
        model.lm_head.weight[model.config.audio_token_id] = 0.0
    save_checkpoint(model, processor, tmp_path / "slim", form="slim")
    own = own_tensors(tmp_path / "slim")
    token_id = model.config.audio_token_id
    assert {name: rows.tolist() for name, rows in own.items() if name.endswith(":rows")} == {
        "model.language_model.layers.1.mlp.up_proj.weight:rows": [5],
        "model.language_model.embed_tokens.weight:rows": [7, 9, token_id],
    }
    assert {name for name in own if "audio_tower" in name or name.endswith("norm.weight")} == {
        "model.audio_tower.layers.0.fc1.weight",
        "model.audio_tower.conv1.bias",
        "model.audio_tower.layers.0.self_attn_layer_norm.bias",
        "model.language_model.norm.weight",
    }
    with pytest.raises(ValueError, match="'model.language_model.norm.weight' .* holds NaN"):
        LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim")
    monkeypatch.setattr(loading_llm_asr, "check_finite", lambda *args: None)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim").state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].numpy().tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "pissa"}])
def test_lora_is_kept_as_factors_and_merged_when_loaded(parts, tmp_path, options):
    model, processor = compose(parts, "moe")
    model = add_trained_lora(model, adapter_name="es", **options)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for form in ("slim", "full"):
        save_checkpoint(model, processor, tmp_path / form, form=form)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    factors = load_file(tmp_path / "slim/adapter/adapter_model.safetensors")
    assert all("language_model" in name and ".lora_" in name for name in factors)
    # PiSSA changes the base weights.
    changed = any("layers" in name for name in own_tensors(tmp_path / "slim"))
    assert changed == (options == {"init_lora_weights": "pissa"})
    check_same_weights(*(LlmAsrForConditionalGeneration.from_pretrained(tmp_path / form) for form in ("slim", "full")))
    for path in ("config.json", "adapter/adapter_config.json"):
        assert str(tmp_path) not in (tmp_path / "slim" / path).read_text()


@pytest.mark.parametrize(("on_disk", "in_memory"), [("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("lora", [False, True])
def test_other_precisions(parts, tmp_path, on_disk, in_memory, lora):
    """Frozen parts are compared and restored in their dtype in the model."""
    here = {}
    for name, auto_class in (("whisper", WhisperForConditionalGeneration), ("qwen2", AutoModelForCausalLM)):
        here[name] = str(shutil.copytree(parts[name], tmp_path / name))
        if on_disk == "bfloat16":
            auto_class.from_pretrained(parts[name], dtype=torch.bfloat16).save_pretrained(here[name])
    dtypes = {part: {"dtype": getattr(torch, in_memory)} for part in ("audio_kwargs", "text_kwargs")}
    processor = LlmAsrProcessor.from_audio_text_pretrained(here["whisper"], here["qwen2"])
    model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(
        here["whisper"], here["qwen2"], projector_type="conv", hidden_size=32, intermediate_size=48, **dtypes
    )
    model = add_trained_lora(model) if lora else randomize(model)
    for form in ("slim", "full"):
        save_checkpoint(model, processor, tmp_path / form, form=form)
    own = own_tensors(tmp_path / "slim")
    assert not any("audio_tower" in name or "layers" in name for name in own)
    for dtype in ("auto", torch.float32, torch.bfloat16):
        check_same_weights(
            *(
                LlmAsrForConditionalGeneration.from_pretrained(tmp_path / form, dtype=dtype)
                for form in ("slim", "full")
            )
        )


def test_adapters_keep_their_precision(saved, recordings, tmp_path):
    """The base model has another dtype."""
    _, processor, root = saved["qwen2"]
    base = LlmAsrForConditionalGeneration.from_pretrained(root / "base", dtype=torch.bfloat16)
    model = add_trained_lora(base)
    save_checkpoint(model, processor, tmp_path / "adapter", form="adapter")
    for auto_class in (LlmAsrForConditionalGeneration, AutoModelForSpeechSeq2Seq):
        loaded = auto_class.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16)
        check_same(model, loaded, processor, recordings)
        trained = {name: "lora_" in name or "modules_to_save" in name for name, _ in loaded.named_parameters()}
        dtypes = {(trained[name], tensor.dtype) for name, tensor in loaded.named_parameters()}
        assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def test_a_loaded_adapter_is_saved_as_one(saved, recordings, tmp_path):
    """Transformers' `save_pretrained` saves an adapter that Transformers has loaded."""
    model, processor, root = saved["qwen2"]
    loaded = LlmAsrForConditionalGeneration.from_pretrained(root / "adapter")
    loaded.save_pretrained(tmp_path / "again")
    assert find_form(tmp_path / "again") == "adapter"
    check_same(model, LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "again"), processor, recordings)
    check_same(
        model,
        PeftModel.from_pretrained(LlmAsrForConditionalGeneration.from_pretrained(root / "base"), tmp_path / "again"),
        processor,
        recordings,
    )


def test_loading_options_act_as_for_a_full_checkpoint(parts, tmp_path):
    model, processor = compose(parts, "moe_cif")
    for form in ("slim", "full"):
        save_checkpoint(randomize(model), processor, tmp_path / form, form=form)
    options = {
        "device_map": {"": "cpu"},
        "attn_implementation": "eager",
        "encoder_padding": "max_length",
        "output_loading_info": True,
    }
    slim, slim_info = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim", **options)
    full, full_info = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "full", **options)
    check_same_weights(slim, full)
    assert slim_info == full_info
    assert slim.config.backbones.keys() == {"audio_tower", "language_model"}
    assert slim.name_or_path == str(tmp_path / "slim")
    settings = [one.config.to_dict() for one in (slim, full)]
    for one in settings:
        del one["backbones"], one["_name_or_path"]
    assert settings[0] == settings[1]
    assert slim.config.text_config._attn_implementation == "eager"
    assert all(parameter.requires_grad for parameter in slim.parameters())


def test_slim_checkpoints_refuse_a_device_map_with_weights_on_disk(saved, tmp_path):
    _, _, root = saved["qwen2"]
    parts = {"model.audio_tower": "cpu", "model.projector": "cpu", "draft_head": "cpu"}
    device_map = {**parts, "model.language_model": "disk", "lm_head": "disk"}
    options = {"device_map": device_map, "offload_folder": tmp_path / "offloaded"}
    with pytest.raises(ValueError, match="`device_map` leaves weights on disk"):
        LlmAsrForConditionalGeneration.from_pretrained(root / "slim", **options)
    full = LlmAsrForConditionalGeneration.from_pretrained(root / "full", **options)
    assert any(parameter.is_meta for parameter in full.parameters())


def test_quantized_when_loaded(parts, recordings, tmp_path):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    model, processor = compose(parts, "moe_cif")
    model = add_trained_lora(model)
    for form in ("slim", "full"):
        save_checkpoint(model, processor, tmp_path / form, form=form)
    quantized = [
        LlmAsrForConditionalGeneration.from_pretrained(
            tmp_path / form, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
        )
        for form in ("slim", "full")
    ]
    check_same(*quantized, processor, recordings)
    layers = [type(one.model.language_model.layers[0].mlp.up_proj.weight.data).__name__ for one in quantized]
    assert layers[0] == layers[1] != "Tensor"
    with pytest.raises(ValueError, match="`model` is quantized"):
        save_checkpoint(quantized[0], processor, tmp_path / "again", form="slim")


def test_frozen_parts_are_read_once_and_not_copied(saved, monkeypatch):
    _, _, root = saved["qwen2"]
    addresses = {}
    load_slim = loading_llm_asr.load_slim

    def load(*args, **kwargs):
        tensors = load_slim(*args, **kwargs)
        addresses.update((name, tensor.data_ptr()) for name, tensor in tensors.items())
        return tensors

    monkeypatch.setattr(loading_llm_asr, "load_slim", load)
    model = LlmAsrForConditionalGeneration.from_pretrained(root / "slim")
    assert addresses == {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("audio", ["wav2vec2-bert", "parakeet"])
def test_other_speech_encoders(parts, tmp_path, audio):
    model, processor = compose(parts, "conv", audio=audio, text="llama")
    save_checkpoint(model, processor, tmp_path / "slim", form="slim")
    assert not any("audio_tower" in name or "layers" in name for name in own_tensors(tmp_path / "slim"))
    check_same_weights(model, LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim"))


def test_language_models_with_converted_weights(parts, tmp_path):
    """Loading stacks the experts of these language models."""
    text = str(shutil.copytree(parts["qwen2"], tmp_path / "text"))
    (tmp_path / "text/model.safetensors").unlink()
    sizes = AutoConfig.from_pretrained(text).to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = Qwen3MoeConfig(
        **{name: sizes[name] for name in (*names, "eos_token_id", "pad_token_id", "intermediate_size")},
        head_dim=10,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        initializer_range=0.2,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(text)
    assert any("experts.0." in name for name in own_tensors(text))
    model, processor = compose({**parts, "qwen3-moe": text}, "conv", text="qwen3-moe")
    randomize(model)
    for form in ("slim", "full"):
        save_checkpoint(model, processor, tmp_path / form, form=form)
    assert not any("layers" in name for name in own_tensors(tmp_path / "slim"))
    slim, full = (LlmAsrForConditionalGeneration.from_pretrained(tmp_path / form) for form in ("slim", "full"))
    check_same_weights(slim, full)
    slim.save_pretrained(tmp_path / "again")
    assert own_tensors(tmp_path / "again").keys() == own_tensors(tmp_path / "full").keys()


def test_parts_and_trained_weights_in_shards(parts, tmp_path, monkeypatch):
    here = {}
    for name, auto_class in (("whisper", WhisperForConditionalGeneration), ("qwen2", AutoModelForCausalLM)):
        here[name] = str(shutil.copytree(parts[name], tmp_path / name))
        os.remove(f"{here[name]}/model.safetensors")
        auto_class.from_pretrained(parts[name]).save_pretrained(here[name], max_shard_size="40KB")
        assert len(list(Path(here[name]).glob("*.safetensors"))) > 1
    model, processor = compose(here, "moe_cif")
    randomize(model)
    monkeypatch.setattr(
        "llm_asr.publishing.checkpoint_forms.save_torch_state_dict",
        partial(save_torch_state_dict, max_shard_size="10KB"),
    )
    save_checkpoint(model, processor, tmp_path / "slim", form="slim")
    assert len(list((tmp_path / "slim").glob("model-*.safetensors"))) > 1
    check_same_weights(model, LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim"))
    sums = (tmp_path / "slim/SHA256SUMS").read_text()
    assert "model.safetensors.index.json" in sums
    assert sums.count("model-0") == len(list((tmp_path / "slim").glob("model-*.safetensors")))


def test_save_pretrained_writes_all_weights(saved, tmp_path):
    """This does not depend on the loaded checkpoint, or on earlier contents of the folder."""
    _, _, root = saved["qwen2"]
    folder = Path(shutil.copytree(root / "slim", tmp_path / "saved"))
    model = LlmAsrForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(folder)
    assert find_form(folder) == "full"
    assert not (folder / "SHA256SUMS").exists()
    assert model.config.backbones is not None
    check_same_weights(model, LlmAsrForConditionalGeneration.from_pretrained(folder))


def test_checksums_are_in_the_format_of_the_command(saved):
    _, _, root = saved["qwen2"]
    for form, number in (("full", 1), ("slim", 2), ("adapter", 1)):
        run = subprocess.run(
            ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=root / form, capture_output=True, text=True, check=True
        )
        assert run.stdout.count(": OK") == number


def test_impossible_forms_are_refused_and_nothing_is_written(saved, parts, tmp_path):
    model, processor, root = saved["qwen2"]
    plain, _ = compose(parts, "conv")
    composed = add_lora(compose(parts, "conv")[0], rank=2)
    merged = add_lora(compose(parts, "conv")[0], rank=2)
    merged.merge_adapter()
    loaded = LlmAsrForConditionalGeneration.from_pretrained(root / "adapter")
    nowhere = compose(parts, "conv")[0]
    nowhere.config.text_config.name_or_path = ""
    slim = {"form": "slim"}
    for one, options, message in [
        (plain, {"form": "small"}, r"`form` must be one of \['full', 'slim', 'adapter'\], got 'small'"),
        (plain, {"backbones": {}}, "`backbones` is for `form='slim'`"),
        (plain, {"form": "slim", "base": "x"}, "`base` is for `form='adapter'`"),
        (plain, {"form": "adapter"}, "`model` is not a `PeftModel`"),
        (composed, {"form": "adapter"}, "was not loaded from a checkpoint"),
        (model, {"form": "adapter", "base": parts["whisper"]}, "of a model of type 'whisper'"),
        (merged, slim, "`model` has merged adapters"),
        (loaded, slim, "adapters loaded into it"),
        (plain, {**slim, "backbones": {"text": "x"}}, r"`backbones` has \['text'\]"),
        (plain, {**slim, "backbone_paths": {"text": "x"}}, r"`backbone_paths` has \['text'\]"),
        (nowhere, slim, "does not record the origin of its language_model"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_checkpoint(one, processor, tmp_path / "new", **options)
    with pytest.raises(ValueError, match="exists already"):
        save_checkpoint(plain, processor, root / "full", form="slim")
    with pytest.raises(OSError, match="someone/audio"):
        save_checkpoint(plain, processor, tmp_path / "new", **slim, backbones={"audio_tower": "someone/audio"})
    assert not list(tmp_path.iterdir())


def test_a_reference_to_another_model_gives_a_warning(parts, tmp_path, caplog):
    model, processor = compose(parts, "conv")
    save_checkpoint(model, processor, tmp_path / "right", form="slim")
    assert "differs from" not in caplog.text
    save_checkpoint(
        model, processor, tmp_path / "wrong", form="slim", backbones={"language_model": parts["qwen2-tied"]}
    )
    assert "% of the language_model differs from" in caplog.text
    check_same_weights(model, LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "wrong"))


def test_a_folder_without_a_checkpoint_has_no_form(parts, tmp_path):
    with pytest.raises(ValueError, match="has neither config.json nor adapter_config.json"):
        find_form(tmp_path)
    with pytest.raises(ValueError, match="'whisper'"):
        find_form(parts["whisper"])
