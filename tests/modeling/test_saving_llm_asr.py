"""A loaded checkpoint equals the saved model."""

import pytest
import torch
from model_batches import NUM_NEW_TOKENS, every_combination, generate, request, training_batch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForSpeechSeq2Seq

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrModel


def comparable(config):
    """A configuration without the fields that loading adds: its folder and the dtype of its weights."""
    if not isinstance(config, dict):
        return config
    added = ("_name_or_path", "dtype", "transformers_version")
    return {name: comparable(value) for name, value in config.items() if name not in added}


@every_combination
def test_round_trip(shared_model, recordings, tmp_path, combination):
    model, processor = shared_model(*combination)
    model.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert_loads_exactly(model, processor, recordings, tmp_path)


@pytest.mark.parametrize("text", ["qwen2", "qwen2-tied"])
@pytest.mark.parametrize("audio", ["whisper", "wav2vec2-bert"])
def test_round_trip_in_shards(shared_model, recordings, tmp_path, audio, text):
    model, processor = shared_model("moe_cif", audio, text)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert_loads_exactly(model, processor, recordings, tmp_path)


def assert_loads_exactly(model, processor, recordings, tmp_path):
    """
    Load the model with the `Auto` class. Weights, configurations and tokens must be equal to the last bit. Losses may differ by
    rounding, which depends on the memory alignment of weights.
    """
    loaded, info = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is LlmAsrForConditionalGeneration
    assert not any(info.values()), info
    assert not loaded.training
    state_dict = loaded.state_dict()
    assert state_dict.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state_dict[name], value), name
    for config in ("config", "generation_config"):
        assert comparable(getattr(loaded, config).to_dict()) == comparable(getattr(model, config).to_dict())

    batch = training_batch(processor, recordings)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss)
    prompts = request(processor, recordings)
    assert torch.equal(generate(loaded, prompts), generate(model, prompts))


def test_auto_model_loads_the_headless_model(shared_model, recordings, tmp_path):
    model, processor = shared_model("moe_cif", "whisper", "qwen2")
    model.save_pretrained(tmp_path)
    headless, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(headless) is LlmAsrModel
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    batch = request(processor, recordings)
    outputs = headless(**batch)
    expected = model(**batch)
    hidden_states = outputs.merged_inputs.at_tokens(outputs.last_hidden_state)
    torch.testing.assert_close(model.lm_head(hidden_states), expected.logits)
    assert torch.equal(outputs.audio_outputs.audio_lengths, expected.audio_lengths)


def test_the_headless_model_saves_and_loads(shared_model, tmp_path):
    model, _ = shared_model("moe_cif", "whisper", "qwen2")
    model.model.save_pretrained(tmp_path)
    loaded = LlmAsrModel.from_pretrained(tmp_path)
    for name, value in model.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(("text", "is_tied"), [("qwen2-tied", True), ("qwen2", False), ("llama", False)])
def test_tied_embeddings_stay_tied_and_others_stay_separate(shared_model, tmp_path, text, is_tied):
    model, _ = shared_model("moe_cif", "whisper", text)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved_names = list(file.keys())
    assert ("lm_head.weight" in saved_names) != is_tied
    for one in (model, AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)):
        assert (one.lm_head.weight is one.get_input_embeddings().weight) == is_tied
        assert one.lm_head.weight.shape == (one.config.text_config.vocab_size, 40)


def test_loading_in_bfloat16_with_another_attention(shared_model, recordings, tmp_path):
    model, processor = shared_model("moe_cif", "whisper", "qwen2")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.config.text_config._attn_implementation == "eager"
    assert loaded.config.audio_config._attn_implementation == "eager"
    assert generate(loaded, request(processor, recordings)).shape == (3, NUM_NEW_TOKENS)
