"""Errors of checkpoint files with a wrong type or value always name the file."""

import json
import shutil

import pytest
from tiny_models import compose

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.publishing.checkpoint_forms import load_checkpoint, save_checkpoint
from llm_asr.serving.export_cache import export_cached
from llm_asr.training.lora import add_lora


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    root = tmp_path_factory.mktemp("settings")
    model, processor = compose(parts, "moe_cif")
    save_checkpoint(model, processor, root / "full")
    adapted = add_lora(LlmAsrForConditionalGeneration.from_pretrained(root / "full"), rank=2)
    save_checkpoint(adapted, processor, root / "adapter", form="adapter")
    return root


@pytest.fixture
def spoil(saved, tmp_path):
    """Copies a checkpoint and changes one value in one of its files."""

    def make(form, name, place, value):
        folder = shutil.copytree(saved / form, tmp_path / "spoiled")
        settings = json.loads((folder / name).read_text())
        *above, last = place
        holder = settings
        for key in above:
            holder = holder[key]
        holder[last] = value
        (folder / name).write_text(json.dumps(settings))
        return folder

    return make


INFINITY = float("inf")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["text_config", "rope_parameters", "rope_type"], {}, "config.json"),
        (["text_config", "num_hidden_layers"], "two", "num_hidden_layers"),
        (["text_config", "num_attention_heads"], 0, "config.json"),
        (["text_config", "model_type"], 7, "config.json"),
        (["text_config"], [], "config.json"),
        (["audio_config", "d_model"], None, "config.json"),
        (["audio_config", "activation_function"], {}, "config.json"),
        (["projector_config", "num_experts"], "four", "num_experts"),
        (["projector_config"], "moe", "config.json"),
        (["audio_token_id"], "<|audio|>", "audio_token_id"),
        # The default model would have gigabytes of weights, which must not be created first.
        (["text_config"], {}, "of another shape than its config.json says"),
        (["audio_config", "encoder_layers"], 500, r"lack \d+ tensor\(s\) that its config.json asks for"),
        (["projector_config", "hidden_size"], 2**20, "of another shape than its config.json says"),
    ],
)
def test_config(spoil, place, value, message):
    folder = spoil("full", "config.json", place, value)
    with pytest.raises(ValueError, match=message) as error:
        LlmAsrForConditionalGeneration.from_pretrained(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_deeply_nested_brackets_are_refused(saved, tmp_path, name):
    folder = shutil.copytree(saved / "full", tmp_path / "deep")
    (folder / name).write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=f"{name} of .* is cut short or damaged"):
        LlmAsrForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("tokenizer.json", ["model"], []),
        ("tokenizer.json", ["model", "merges"], None),
        ("tokenizer.json", ["model", "dropout"], {}),
        ("tokenizer.json", ["added_tokens"], 1.5),
        ("tokenizer.json", ["pre_tokenizer"], []),
        ("tokenizer.json", ["decoder"], True),
        ("tokenizer.json", ["version"], True),
        ("tokenizer_config.json", ["eos_token"], {}),
        ("tokenizer_config.json", ["tokenizer_class"], []),
        ("tokenizer_config.json", ["extra_special_tokens"], -1),
        ("tokenizer_config.json", ["add_prefix_space"], -1),
        ("processor_config.json", ["samples_per_frame"], "320"),
        ("processor_config.json", ["samples_per_frame"], 0),
        ("processor_config.json", ["max_audio_samples"], -1),
        ("processor_config.json", ["transcription_template"], True),
        ("processor_config.json", ["languages"], ["es"]),
        ("processor_config.json", ["audio_token"], 7),
        ("processor_config.json", ["feature_extractor", "hop_length"], True),
        ("processor_config.json", ["feature_extractor", "sampling_rate"], "16000"),
        ("processor_config.json", ["feature_extractor", "dither"], INFINITY),
        ("processor_config.json", ["feature_extractor"], 3),
    ],
)
def test_files_of_a_processor(spoil, name, place, value):
    folder = spoil("full", name, place, value)
    with pytest.raises(ValueError, match=f"{name}.* of '{folder}' is not valid: ."):
        LlmAsrProcessor.from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "[1]", "null", '{"added_tokens": ['])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_truncated_files_of_a_processor(saved, tmp_path, name, content):
    folder = shutil.copytree(saved / "full", tmp_path / "cut")
    (folder / name).write_text(content)
    with pytest.raises((ValueError, OSError), match=name):
        LlmAsrProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", {}),
        ("r", -1),
        ("lora_alpha", "much"),
        ("peft_type", []),
        ("peft_type", "NONE"),
        ("target_modules", 5),
        ("alpha_pattern", True),
        ("modules_to_save", "text"),
        ("init_lora_weights", INFINITY),
        ("bias", 1.5),
        ("revision", 3),
        ("base_model_name_or_path", 5),
    ],
)
def test_adapter_config(spoil, tmp_path, field, value):
    folder = spoil("adapter", "adapter_config.json", [field], value)
    for load in (
        LlmAsrForConditionalGeneration.from_pretrained,
        load_checkpoint,
        lambda name: export_cached(str(name), tmp_path / "cache"),
    ):
        with pytest.raises(ValueError, match="adapter_config.json"):
            load(folder)
