"""A checkpoint in its three forms: what each holds, and that each loads as the same model."""

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


TEXTS = ["qwen2", "qwen2-tied"]


def put_in_hub_cache(cache: Path, repo_id: str, revisions: dict[str, Path]) -> dict[str, str]:
    """As if the revisions of a repository had been downloaded; their commits."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    commits = {}
    for revision, folder in revisions.items():
        commits[revision] = hashlib.sha1(f"{repo_id} {revision}".encode()).hexdigest()
        (repository / "refs" / revision).write_text(commits[revision])
        shutil.copytree(folder, repository / "snapshots" / commits[revision])
    return commits


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def randomize(model, names=("projector", "lora_B")):
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names) and "original_module" not in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def add_trained_lora(model, **options):
    return randomize(add_lora(model, rank=2, dropout=0.0, **options)).eval()


@torch.no_grad()
def outputs(model, processor, recordings):
    inputs = processor.apply_transcription_request(recordings)
    # PyTorch chooses kernels by it.
    model.eval().requires_grad_(False)
    return model(**inputs).logits, model.generate(**inputs, max_new_tokens=8)


def check_same(model, other, processor, recordings):
    for one, two in zip(*(outputs(each, processor, recordings) for each in (model, other)), strict=True):
        # Kernels round by where weights lie in memory; tokens are the same.
        torch.testing.assert_close(one, two)


def check_same_weights(model, other):
    tensors, others = model.state_dict(), other.state_dict()
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name
    buffers = dict(other.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def own_tensors(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in Path(folder).glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    """A model in each form and the checkpoint below its adapter, by language model."""
    root = tmp_path_factory.mktemp("forms")
    folders = {}
    for text in TEXTS:
        model, processor = compose(parts, "moe_cif", text=text, draft_head=True)
        save_checkpoint(model, processor, root / text / "base", form="slim")
        model = add_trained_lora(LlmAsrForConditionalGeneration.from_pretrained(root / text / "base"))
        for form in FORMS:
            save_checkpoint(model, processor, root / text / form, form=form)
        folders[text] = model, processor, root / text
    return folders


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", FORMS)
def test_forms_load_as_the_same_model(saved, recordings, form, text):
    model, processor, root = saved[text]
    assert find_form(root / form) == form
    # What is merged is merged when it is saved or, to the bit, when it is loaded.
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
def test_slim_holds_what_was_trained(parts, tmp_path, text):
    model, processor = compose(parts, "moe_cif", text=text, draft_head=True)
    save_checkpoint(randomize(model), processor, tmp_path / "slim", form="slim")
    save_checkpoint(model, processor, tmp_path / "full")
    own = own_tensors(tmp_path / "slim")
    trained = {name for name in model.state_dict() if "projector" in name or "draft_head" in name}
    embeddings = {"model.language_model.embed_tokens.weight"} | ({"lm_head.weight"} if text == "qwen2" else set())
    rows = {f"{name}{end}" for name in embeddings for end in (":rows", ":values")}
    assert set(own) == trained | rows
    # The row of the audio token.
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


def test_all_that_differs_is_kept_to_the_bit(parts, recordings, tmp_path):
    model, processor = compose(parts, "conv")
    audio_tower, language_model = model.model.audio_tower, model.model.language_model
    with torch.no_grad():
        audio_tower.layers[0].fc1.weight += 1e-3
        audio_tower.conv1.bias[3] += 1e-3
        language_model.layers[1].mlp.up_proj.weight[5] += 1e-3
        language_model.embed_tokens.weight[[7, 9]] *= 2
        # Equal as numbers.
        assert bool((audio_tower.layers[0].self_attn_layer_norm.bias == 0).all())
        audio_tower.layers[0].self_attn_layer_norm.bias[0] = -0.0
        language_model.norm.weight[1] = torch.nan
        # As rows are that a part does not have.
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
    # This one changes what it is added to.
    changed = any("layers" in name for name in own_tensors(tmp_path / "slim"))
    assert changed == (options == {"init_lora_weights": "pissa"})
    check_same_weights(*(LlmAsrForConditionalGeneration.from_pretrained(tmp_path / form) for form in ("slim", "full")))
    for path in ("config.json", "adapter/adapter_config.json"):
        assert str(tmp_path) not in (tmp_path / "slim" / path).read_text()


@pytest.mark.parametrize(("on_disk", "in_memory"), [("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("lora", [False, True])
def test_other_precisions(parts, tmp_path, on_disk, in_memory, lora):
    """Frozen parts are compared, and restored, in the precision that they had in the model."""
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
    """Beside a model in another one, in which they were trained."""
    _, processor, root = saved["qwen2"]
    base = LlmAsrForConditionalGeneration.from_pretrained(root / "base", dtype=torch.bfloat16)
    model = add_trained_lora(base)
    save_checkpoint(model, processor, tmp_path / "adapter", form="adapter")
    for auto_class in (LlmAsrForConditionalGeneration, AutoModelForSpeechSeq2Seq):
        loaded = auto_class.from_pretrained(tmp_path / "adapter", dtype=torch.bfloat16)
        check_same(model, loaded, processor, recordings)
        dtypes = {name.partition(".lora_")[1]: tensor.dtype for name, tensor in loaded.named_parameters()}
        assert dtypes == {".lora_": torch.float32, "": torch.bfloat16}


def test_a_loaded_adapter_is_saved_as_one(saved, recordings, tmp_path):
    """By Transformers, which has taken it over."""
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


def test_options_of_loading_are_those_of_a_full_checkpoint(parts, tmp_path):
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


def test_slim_checkpoints_are_not_left_on_disk(saved, tmp_path):
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


@pytest.fixture
def movable(parts, tmp_path):
    """Frozen parts of their own, and a slim checkpoint that refers to them."""
    here = {name: str(shutil.copytree(parts[name], tmp_path / name)) for name in ("whisper", "qwen2")}
    model, processor = compose(here, "moe_cif")
    save_checkpoint(randomize(model), processor, tmp_path / "slim", form="slim")
    return tmp_path


def test_parts_that_have_moved(movable, recordings):
    expected = LlmAsrForConditionalGeneration.from_pretrained(movable / "slim")
    (movable / "qwen2").rename(movable / "elsewhere")
    with pytest.raises(
        OSError, match=r'language_model .*qwen2\', which is not there; .*`backbone_paths=\{"language_model"'
    ):
        LlmAsrForConditionalGeneration.from_pretrained(movable / "slim")
    backbone_paths = {"language_model": movable / "elsewhere"}
    for auto_class in (LlmAsrForConditionalGeneration, AutoModelForSpeechSeq2Seq):
        loaded = auto_class.from_pretrained(movable / "slim", backbone_paths=backbone_paths)
        check_same_weights(expected, loaded)
    transcriber = pipeline(
        "automatic-speech-recognition", model=str(movable / "slim"), model_kwargs={"backbone_paths": backbone_paths}
    )
    check_same_weights(expected, transcriber.model)
    for wrong, message in (
        ({"text": movable}, r"`backbone_paths` has \['text'\]; its keys are among"),
        ({"language_model": movable / "absent"}, "absent', which is not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            LlmAsrForConditionalGeneration.from_pretrained(movable / "slim", backbone_paths=wrong)


def test_backbone_paths_are_for_slim_checkpoints(saved, parts):
    _, _, root = saved["qwen2"]
    with pytest.raises(ValueError, match="`backbone_paths` is for slim checkpoints"):
        LlmAsrForConditionalGeneration.from_pretrained(root / "full", backbone_paths={"audio_tower": parts["whisper"]})
    # The base of this one is slim.
    LlmAsrForConditionalGeneration.from_pretrained(root / "adapter", backbone_paths={"audio_tower": parts["whisper"]})


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_part_that_has_changed_is_refused(movable, name, moved):
    path = movable / "qwen2" / name
    content = bytearray(path.read_bytes())
    content[-3 if name == "model.safetensors" else -1 :] = b"\0\0\0" if name == "model.safetensors" else b" "
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(content)
    options = {}
    if moved:
        (movable / "qwen2").rename(movable / "elsewhere")
        options["backbone_paths"] = {"language_model": str(movable / "elsewhere")}
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(
        ValueError, match=f"{name} .* expected SHA-256 {expected}, found {found}; the language_model must be"
    ):
        LlmAsrForConditionalGeneration.from_pretrained(movable / "slim", **options)


def test_parts_of_the_hub_are_pinned(parts, tmp_path, hub_cache):
    """The branch has gone on since."""
    older = {name: str(shutil.copytree(parts[name], tmp_path / name)) for name in ("whisper", "qwen2")}
    newer = parts["qwen2-tied"]
    audio = put_in_hub_cache(hub_cache, "someone/audio", {"main": older["whisper"]})["main"]
    text = put_in_hub_cache(hub_cache, "someone/text", {"main": newer, "v1": older["qwen2"]})["v1"]
    model, processor = compose(older, "conv")
    options = {"backbones": {"audio_tower": "someone/audio", "language_model": "someone/text@v1"}}
    save_checkpoint(randomize(model), processor, tmp_path / "slim", form="slim", **options)
    for name in older:
        shutil.rmtree(older[name])
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim")
    check_same_weights(model, loaded)
    references = loaded.config.backbones
    assert {name: (one["name_or_path"], one["revision"]) for name, one in references.items()} == {
        "audio_tower": ("someone/audio", audio),
        "language_model": ("someone/text", text),
    }
    # Saved again, it is pinned as it was.
    save_checkpoint(loaded, processor, tmp_path / "again", form="slim")
    assert json.loads((tmp_path / "again/config.json").read_text())["backbones"] == references
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "slim/model.safetensors").read_bytes()


def test_copies_of_parts_of_the_hub(parts, tmp_path, hub_cache):
    """What is referred to need not be fetched to be read."""
    model, processor = compose(parts, "conv")
    copies = {"audio_tower": parts["whisper"], "language_model": parts["qwen2"]}
    with pytest.raises(ValueError, match=r"a copy of 'someone/audio' at which commit\?"):
        save_checkpoint(
            model,
            processor,
            tmp_path / "slim",
            form="slim",
            backbones={"audio_tower": "someone/audio@main"},
            backbone_paths=copies,
        )
    commits = {"audio_tower": "a" * 40, "language_model": "b" * 40}
    save_checkpoint(
        model,
        processor,
        tmp_path / "slim",
        form="slim",
        backbones={part: f"someone/{part}@{commit}" for part, commit in commits.items()},
        backbone_paths=copies,
    )
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim", backbone_paths=copies)
    check_same_weights(model, loaded)
    assert {part: reference["revision"] for part, reference in loaded.config.backbones.items()} == commits
    with pytest.raises(OSError, match="someone/audio_tower"):
        LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim")


def test_adapters_are_for_a_revision_of_their_base(saved, recordings, tmp_path, hub_cache):
    """Whatever its branch is now, and by whichever way they are loaded."""
    model, processor, root = saved["qwen2"]
    newer = saved["qwen2-tied"][2] / "full"
    commits = put_in_hub_cache(hub_cache, "someone/base", {"main": newer, "v1": root / "base"})
    save_checkpoint(model, processor, tmp_path / "adapter", form="adapter", base="someone/base@v1")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("someone/base", commits["v1"])
    # By itself, it is for what was loaded.
    base = LlmAsrForConditionalGeneration.from_pretrained("someone/base", revision="v1")
    save_checkpoint(add_lora(base, rank=2), processor, tmp_path / "other", form="adapter")
    others = json.loads((tmp_path / "other/adapter_config.json").read_text())
    assert (others["base_model_name_or_path"], others["revision"]) == ("someone/base", commits["v1"])
    put_in_hub_cache(hub_cache, "someone/adapter", {"main": newer, "v2": tmp_path / "adapter"})
    for name, options in ((tmp_path / "adapter", {}), ("someone/adapter", {"revision": "v2"})):
        loaded = LlmAsrForConditionalGeneration.from_pretrained(name, **options)
        check_same(model, loaded, processor, recordings)
    check_same(model, AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "adapter"), processor, recordings)
    transcriber = pipeline("automatic-speech-recognition", model=str(tmp_path / "adapter"))
    check_same(model, transcriber.model, processor, recordings)


def test_a_slim_checkpoint_of_the_hub(saved, hub_cache):
    _, _, root = saved["qwen2"]
    newer = root / "full"
    put_in_hub_cache(hub_cache, "someone/asr", {"main": newer, "v1": root / "slim"})
    expected = LlmAsrForConditionalGeneration.from_pretrained(root / "slim")
    transcriber = pipeline("automatic-speech-recognition", "someone/asr", revision="v1")
    check_same_weights(expected, transcriber.model)
    assert transcriber.model.config.backbones is not None
    assert LlmAsrForConditionalGeneration.from_pretrained("someone/asr").config.backbones is None


@pytest.mark.parametrize("audio", ["wav2vec2-bert", "parakeet"])
def test_other_speech_encoders(parts, tmp_path, audio):
    model, processor = compose(parts, "conv", audio=audio, text="llama")
    save_checkpoint(model, processor, tmp_path / "slim", form="slim")
    assert not any("audio_tower" in name or "layers" in name for name in own_tensors(tmp_path / "slim"))
    check_same_weights(model, LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "slim"))


def test_language_models_whose_weights_are_converted(parts, tmp_path):
    """Their experts are stacked when they are loaded."""
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


def test_parts_and_own_weights_in_shards(parts, tmp_path, monkeypatch):
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


def test_saved_by_itself_a_model_has_all_its_weights(saved, tmp_path):
    """Whatever it was loaded from, and whatever was there before."""
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


def test_what_cannot_be_saved_is_refused_and_nothing_written(saved, parts, tmp_path):
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
        (plain, {"form": "adapter"}, "`model` is no `PeftModel`"),
        (composed, {"form": "adapter"}, "was not loaded from a checkpoint"),
        (model, {"form": "adapter", "base": parts["whisper"]}, "of a model of type 'whisper'"),
        (merged, slim, "`model` has merged adapters"),
        (loaded, slim, "adapters loaded into it"),
        (plain, {**slim, "backbones": {"text": "x"}}, r"`backbones` has \['text'\]"),
        (plain, {**slim, "backbone_paths": {"text": "x"}}, r"`backbone_paths` has \['text'\]"),
        (nowhere, slim, "does not say where its language_model is from"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_checkpoint(one, processor, tmp_path / "new", **options)
    with pytest.raises(ValueError, match="is there already"):
        save_checkpoint(plain, processor, root / "full", form="slim")
    with pytest.raises(OSError, match="someone/audio"):
        save_checkpoint(plain, processor, tmp_path / "new", **slim, backbones={"audio_tower": "someone/audio"})
    assert not list(tmp_path.iterdir())


def test_a_reference_to_another_model_is_told(parts, tmp_path, caplog):
    model, processor = compose(parts, "conv")
    save_checkpoint(model, processor, tmp_path / "right", form="slim")
    assert "is not as in" not in caplog.text
    save_checkpoint(
        model, processor, tmp_path / "wrong", form="slim", backbones={"language_model": parts["qwen2-tied"]}
    )
    assert "% of the language_model is not as in" in caplog.text
    check_same_weights(model, LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "wrong"))


def test_what_is_no_checkpoint_has_no_form(parts, tmp_path):
    with pytest.raises(ValueError, match="has neither config.json nor adapter_config.json"):
        find_form(tmp_path)
    with pytest.raises(ValueError, match="'whisper'"):
        find_form(parts["whisper"])
