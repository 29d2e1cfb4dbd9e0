"""Weights that are missing, renamed or not finite are refused, because such a model transcribes gibberish."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import compose
from transformers import AutoModel, AutoModelForSpeechSeq2Seq, GenerationConfig, pipeline

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrModel, LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.publishing.checkpoint_forms import FORMS, load_checkpoint, save_checkpoint
from llm_asr.publishing.export import export_for_serving
from llm_asr.training.lora import add_lora


@pytest.fixture(scope="module")
def forms(parts, tmp_path_factory):
    root = tmp_path_factory.mktemp("forms")
    model, processor = compose(parts, "moe_cif", draft_head=True)
    base = root / "base"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    for form in FORMS:
        kept = LlmAsrForConditionalGeneration.from_pretrained(base) if form == "adapter" else model
        save_checkpoint(add_lora(kept, rank=2) if form == "adapter" else kept, processor, root / form, form=form)
    adapted = add_lora(LlmAsrForConditionalGeneration.from_pretrained(root / "slim"), rank=2)
    save_checkpoint(adapted, processor, root / "factors", form="slim")
    return root


def change(folder, source, alter):
    """Copy a checkpoint, and change its weights and remove its digests."""
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file() and file.name != "SHA256SUMS":
            (folder / file.name).write_bytes(file.read_bytes())
    (path,) = list(folder.glob("*.safetensors"))
    tensors = load_file(path)
    alter(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def a_name(tensors, part):
    return next(name for name in tensors if part in name and tensors[name].is_floating_point() and tensors[name].dim())


def drop(part):
    return lambda tensors: tensors.pop(a_name(tensors, part))


def rename(part):
    def alter(tensors):
        name = a_name(tensors, part)
        tensors[name.replace(part, f"{part}s")] = tensors.pop(name)

    return alter


def fill(part, value):
    def alter(tensors):
        tensors[a_name(tensors, part)].flatten()[0] = value

    return alter


def add(name):
    def alter(tensors):
        tensors[name] = torch.zeros(1)

    return alter


def double(part):
    def alter(tensors):
        name = a_name(tensors, part)
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    return alter


FAULTS = {
    "a missing projector": (drop("projector"), r"lack 1 tensor\(s\) that its config.json asks for, 'model.projector"),
    "a renamed projector": (
        rename("projector"),
        r"lack 1 tensor\(s\) .*, and hold 1 tensor\(s\) that are not the model's, 'model.projectors",
    ),
    "a missing draft head": (drop("draft_head"), r"'draft_head"),
    "one tensor too many": (add("model.other.weight"), "'model.other.weight'"),
    "another shape": (double("projector"), "'model.projector.*(' of shape .* in place of .*|does not fit the model)"),
    "not a number": (fill("projector", float("nan")), "The tensor 'model.projector.* holds NaN or infinity"),
    "infinity": (fill("projector", float("inf")), "The tensor 'model.projector.* holds NaN or infinity"),
}
BACKBONE_FAULTS = {
    "a missing layer": (drop("language_model.layers"), "'model.language_model.layers"),
    "a missing encoder": (drop("audio_tower.layers"), "'model.audio_tower.layers"),
    "a number that is none in the encoder": (fill("audio_tower", float("nan")), "'model.audio_tower.*NaN"),
}


@pytest.mark.parametrize("fault", [*FAULTS, *BACKBONE_FAULTS])
def test_an_incomplete_full_checkpoint_is_refused(forms, tmp_path, fault):
    alter, message = {**FAULTS, **BACKBONE_FAULTS}[fault]
    folder = change(tmp_path / "damaged", forms / "full", alter)
    for load in (
        LlmAsrForConditionalGeneration.from_pretrained,
        AutoModelForSpeechSeq2Seq.from_pretrained,
        lambda name: pipeline("automatic-speech-recognition", model=str(name)),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load(folder)
        assert str(folder) in str(error.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_incomplete_slim_checkpoint_is_refused(forms, tmp_path, fault):
    alter, message = FAULTS[fault]
    folder = change(tmp_path / "damaged", forms / "slim", alter)
    with pytest.raises(ValueError, match=message if "NaN" in message else "'model.projector|'draft_head|'model.other"):
        LlmAsrForConditionalGeneration.from_pretrained(folder)


ADAPTER_FAULTS = {
    "not a number": (fill("lora_A", float("nan")), "holds NaN or infinity"),
    "infinity": (fill("lora_A", float("inf")), "holds NaN or infinity"),
    "a missing factor": (drop("lora_B"), "1 tensors are on one side alone, '.*lora_B"),
    "a renamed factor": (rename("lora_B"), "2 tensors are on one side alone, '.*lora_B"),
    "another shape": (double("lora_B"), "'.*lora_B.*' has the shape .* in place of"),
}


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_an_incomplete_adapter_is_refused(forms, tmp_path, fault):
    """All loaders refuse such an adapter. PEFT alone would silently ignore missing weights."""
    alter, message = ADAPTER_FAULTS[fault]
    folder = change(tmp_path / "damaged", forms / "adapter", alter)
    for load in (
        LlmAsrForConditionalGeneration.from_pretrained,
        AutoModelForSpeechSeq2Seq.from_pretrained,
        load_checkpoint,
        lambda name: pipeline("automatic-speech-recognition", model=str(name)),
    ):
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_an_adapter_that_has_changed_is_not_exported(forms, tmp_path):
    folder = copy(forms / "adapter", tmp_path / "changed")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(ValueError, match="adapter_model.safetensors .* is not the file that SHA256SUMS"):
        load_checkpoint(folder)


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_incomplete_factors_of_a_slim_checkpoint_are_refused(forms, tmp_path, fault):
    alter, message = ADAPTER_FAULTS[fault]
    folder = copy(forms / "factors", tmp_path / "damaged")
    (folder / "SHA256SUMS").unlink()
    change(folder / "adapter", forms / "factors" / "adapter", alter)
    with pytest.raises(ValueError, match=message):
        LlmAsrForConditionalGeneration.from_pretrained(folder)


PART_FAULTS = {
    ("whisper", "fc1"): (drop("encoder.layers.0.fc1"), "lack 1 tensor.*'.*layers.0.fc1"),
    ("qwen2", "up_proj"): (drop("layers.1.mlp.up_proj"), "lack 1 tensor.*'.*layers.1.mlp.up_proj"),
    ("whisper", "NaN"): (fill("encoder.layers.0.fc1", float("nan")), "'layers.0.fc1.*holds NaN"),
    ("qwen2", "NaN"): (fill("layers.1.mlp.up_proj", float("nan")), "'model.layers.1.mlp.up_proj.*holds NaN"),
}


@pytest.mark.parametrize(("part", "fault"), PART_FAULTS)
def test_a_model_is_not_composed_of_incomplete_parts(parts, tmp_path, part, fault):
    alter, message = PART_FAULTS[part, fault]
    folder = change(tmp_path / part, Path(parts[part]), alter)
    with pytest.raises(ValueError, match=message):
        compose({**parts, part: str(folder)}, "conv")


def test_a_dtype_that_cannot_hold_the_weights_is_refused(forms, tmp_path):
    """Weights that become infinite would give gibberish."""
    folder = change(tmp_path / "large", forms / "full", fill("lm_head", 1e30))
    LlmAsrForConditionalGeneration.from_pretrained(folder)
    with pytest.raises(ValueError, match="'lm_head.weight' .* holds NaN or infinity.*, pass another"):
        LlmAsrForConditionalGeneration.from_pretrained(folder, dtype=torch.float16)


def test_other_shapes_are_accepted_on_request(forms, tmp_path):
    folder = change(tmp_path / "wide", forms / "full", double("projector"))
    LlmAsrForConditionalGeneration.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_the_model_without_a_head_needs_no_head(forms, tmp_path):
    folder = change(tmp_path / "headless", forms / "full", drop("lm_head"))
    assert type(AutoModel.from_pretrained(folder)) is LlmAsrModel
    with pytest.raises(ValueError, match="'lm_head.weight'"):
        LlmAsrForConditionalGeneration.from_pretrained(folder)


def test_loading_info_is_returned(forms):
    model, info = LlmAsrForConditionalGeneration.from_pretrained(forms / "full", output_loading_info=True)
    assert isinstance(model, LlmAsrForConditionalGeneration)
    assert not info["missing_keys"]


def copy(source, folder):
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit(folder, name, **fields):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("form", ["full", "slim"])
def test_a_damaged_generation_configuration_is_refused(forms, tmp_path, form):
    """Without the file, Transformers would use other defaults, and transcripts would change."""
    folder = copy(forms / form, tmp_path / "cut")
    path = folder / "generation_config.json"
    text = path.read_text()
    path.write_text(text[:40])
    with pytest.raises(ValueError, match="generation_config.json of .* is cut short or damaged"):
        LlmAsrForConditionalGeneration.from_pretrained(folder)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config.json of .* must be a JSON object, got \[\]"):
        LlmAsrForConditionalGeneration.from_pretrained(folder)
    path.unlink()
    with pytest.raises(OSError, match="has no generation_config.json, which says how the model transcribes"):
        LlmAsrForConditionalGeneration.from_pretrained(folder)
    own = GenerationConfig(eos_token_id=2)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(folder, generation_config=own)
    assert loaded.generation_config.eos_token_id == 2
    # This class does not generate, so it needs no generation configuration.
    LlmAsrModel.from_pretrained(folder)


@pytest.mark.parametrize("form", ["full", "slim"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens_per_second", 0),
        ("max_new_tokens_per_second", -1),
        ("max_new_tokens_per_second", float("inf")),
        ("max_new_tokens_per_second", "20"),
        ("max_new_tokens_per_second", True),
        ("num_beams", []),
        ("num_beams", 1.5),
        ("temperature", [1.0]),
        ("repetition_penalty", float("nan")),
        ("eos_token_id", float("inf")),
        ("eos_token_id", 10**9),
        ("pad_token_id", "<|endoftext|>"),
        ("transcription_prompt_ids", [1, -1]),
        ("transcription_prompt_ids", "Transcribe the speech."),
    ],
)
def test_impossible_values_of_a_generation_configuration_are_refused(forms, tmp_path, form, field, value):
    folder = copy(forms / form, tmp_path / "wrong")
    edit(folder, "generation_config.json", **{field: value})
    with pytest.raises(ValueError, match=f"generation_config.json of .* is not valid: `{field}` must be"):
        LlmAsrForConditionalGeneration.from_pretrained(folder)


def test_a_served_model_with_an_impossible_limit_is_refused(forms, tmp_path):
    model = LlmAsrForConditionalGeneration.from_pretrained(forms / "full")
    model.generation_config.max_new_tokens_per_second = 0
    with pytest.raises(ValueError, match="`max_new_tokens_per_second` must be from 0.1 to 1000"):
        export_for_serving(model, LlmAsrProcessor.from_pretrained(forms / "full"), tmp_path / "out")


@pytest.mark.parametrize("value", [0, -1, -0.5, 1e-6, float("inf"), float("nan"), "20"])
def test_an_impossible_rate_of_tokens_is_refused(forms, recordings, value):
    model = LlmAsrForConditionalGeneration.from_pretrained(forms / "full")
    processor = LlmAsrProcessor.from_pretrained(forms / "full")
    inputs = processor.apply_transcription_request(recordings[:1])
    with pytest.raises(ValueError, match="`max_new_tokens_per_second` must be from 0.1 to 1000"):
        model.generate(**inputs, max_new_tokens_per_second=value)
    model.generation_config.max_new_tokens_per_second = value
    with pytest.raises(ValueError, match="correct it in the call or in generation_config.json"):
        model.generate(**inputs)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"audio_frame_rate": float("inf")}, "`audio_frame_rate` must be from 0.1 to 48000"),
        ("config.json", {"audio_frame_rate": 1e-9}, "`audio_frame_rate` must be from 0.1 to 48000"),
        (
            "config.json",
            {"audio_frame_rate": 25.0},
            "it has 50 frames per second, but `audio_frame_rate` of the model is 25",
        ),
        ("config.json", {"audio_token_id": 7}, "but `audio_token_id` of the model is 7"),
        ("processor_config.json", {"samples_per_frame": 640}, "so it has 25 frames per second"),
    ],
)
def test_a_processor_of_another_model_is_refused(forms, tmp_path, name, fields, message):
    folder = copy(forms / "full", tmp_path / "other")
    edit(folder, name, **fields)
    with pytest.raises(ValueError, match=message):
        pipeline("automatic-speech-recognition", model=str(folder))


def test_another_sampling_rate_is_refused(forms, tmp_path):
    folder = copy(forms / "full", tmp_path / "slow")
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["feature_extractor"]["sampling_rate"] = 8000
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="8000 samples per second and 320 per frame"):
        pipeline("automatic-speech-recognition", model=str(folder))


DAMAGED = {
    "config.json: cut": ("config.json", lambda text: text[: len(text) // 2], "config.json"),
    "config.json: a string": ("config.json", lambda text: '"config"', "config.json"),
    "config.json: num_experts": ("config.json", lambda text: text.replace('"num_experts": 4', '"num_experts": "x"'), "num_experts"),
    "config.json: hidden_act": ("config.json", lambda text: text.replace('"hidden_act": "gelu"', '"hidden_act": 3'), "hidden_act"),
    "config.json: audio_token_id": ("config.json", lambda text: text.replace('"audio_token_id"', '"audio_token_id": null, "x"'), "audio_token_id"),
    "tokenizer.json: cut": ("tokenizer.json", lambda text: text[: len(text) // 2], "tokenizer.json"),
    "tokenizer.json: a list": ("tokenizer.json", lambda text: "[]", "tokenizer.json"),
    "tokenizer.json: no model": ("tokenizer.json", lambda text: "{}", "cannot be loaded"),
    "processor_config.json: a number": ("processor_config.json", lambda text: "3", "processor_config.json"),
    "processor_config.json: template": (
        "processor_config.json",
        lambda text: json.dumps({**json.loads(text), "transcription_template": "{{ audio_token }}{% for x in 3 %}{% endfor %}"}),
        "template",
    ),
    "generation_config.json: cut": ("generation_config.json", lambda text: text[:20], "generation_config.json"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED)
def test_the_command_names_the_file_or_the_field(forms, tmp_path, capsys, recordings, damage):
    import soundfile

    name, alter, message = DAMAGED[damage]
    folder = copy(forms / "full", tmp_path / "damaged")
    path = folder / name
    text = path.read_text()
    path.write_text(alter(text))
    assert path.read_text() != text
    soundfile.write(tmp_path / "one.wav", recordings[0], 16000)
    assert main(["transcribe", str(tmp_path / "one.wav"), "--model", str(folder)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("llm-asr transcribe: error: ")
    assert message in error
    assert len(error) < 700


@pytest.mark.parametrize("command", ["inspect", "export", "push"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("config.json", "3"),
        ("processor_config.json", "[1, 2]"),
        ("adapter_config.json", "null"),
        ("adapter_config.json", '{"base_model_name_or_path": 3'),
    ],
)
def test_no_command_shows_a_traceback_for_bad_input(forms, tmp_path, capsys, command, form, name, contents):
    folder = copy(forms / form, tmp_path / "damaged")
    if not (folder / name).exists():
        pytest.skip(f"a {form} checkpoint has no {name}")
    (folder / name).write_text(contents)
    arguments = {"inspect": [], "export": [str(tmp_path / "out")], "push": ["someone/asr", "--dry-run"]}[command]
    status = main([command, str(folder), *arguments])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert error.startswith(f"llm-asr {command}: error: ")
    assert name in error
    assert len(error) < 700


def test_unexpected_errors_of_commands_are_one_line(forms, capsys, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("llm_asr.publishing.inspect.print_inspection", fail)
    assert main(["inspect", str(forms / "full")]) == 1
    assert "llm-asr inspect: error: ZeroDivisionError: division by zero (set " in capsys.readouterr().err
    monkeypatch.setenv("LLM_ASR_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["inspect", str(forms / "full")])


def test_missing_tensors_are_detected_even_if_the_index_omits_them(forms, tmp_path):
    LlmAsrForConditionalGeneration.from_pretrained(forms / "full").save_pretrained(tmp_path, max_shard_size="100KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    kept = {name: shard for name, shard in index["weight_map"].items() if "projector" not in name}
    missing = len(index["weight_map"]) - len(kept)
    path.write_text(json.dumps({**index, "weight_map": kept}))
    for shard in tmp_path.glob("*.safetensors"):
        tensors = {name: tensor for name, tensor in load_file(shard).items() if name in kept}
        save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"lack {missing} tensor\(s\) that its config.json asks for, 'model.projector"
    ):
        LlmAsrForConditionalGeneration.from_pretrained(tmp_path)
