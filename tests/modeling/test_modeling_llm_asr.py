"""Inputs, outputs and composition of the model."""

import pytest
import torch
from model_batches import KERNEL_NOISE, NUM_NEW_TOKENS, backward, every_projector, generate, request, training_batch
from tiny_models import compose
from transformers import AutoModel, AutoModelForCausalLM

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor


@every_projector
def test_cached_encoder_output_replaces_features(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    expected = model(**batch)
    features, mask = batch.pop("input_features"), batch.pop("input_features_mask")
    hidden_states, mask = model.model.get_audio_hidden_states(features, mask)
    # Values in the padding must not matter.
    hidden_states = hidden_states.masked_fill(~mask[:, :, None], float("nan"))
    cached = {"audio_hidden_states": hidden_states, "audio_hidden_states_mask": mask}
    outputs = model(**batch, **cached)
    torch.testing.assert_close(outputs.loss, expected.loss)
    torch.testing.assert_close(outputs.logits, expected.logits, **KERNEL_NOISE)
    prompts = request(processor, recordings)
    expected = generate(model, prompts)
    del prompts["input_features"], prompts["input_features_mask"]
    assert torch.equal(generate(model, {**prompts, **cached}), expected)


def test_contradictory_and_missing_inputs_are_refused(shared_model, recordings):
    model, processor = shared_model("conv", "whisper", "qwen2")
    batch = request(processor, recordings)
    with pytest.raises(ValueError, match="`input_features` or `audio_hidden_states`"):
        model(**batch, audio_hidden_states=torch.zeros(3, 5, 32))
    with pytest.raises(ValueError, match="`input_ids` or `inputs_embeds` must be passed"):
        model(input_features=batch["input_features"])


def test_a_recording_without_a_valid_frame_is_refused(shared_model, recordings):
    model, processor = shared_model("conv", "whisper", "qwen2")
    batch = request(processor, recordings)
    batch["input_features_mask"][1] = 0
    with pytest.raises(ValueError, match=r"`input_features_mask` leaves no frame to recording\(s\) \[1\]"):
        model(**batch)


def test_audio_tokens_must_match_recordings(shared_model, recordings):
    model, processor = shared_model("conv", "whisper", "qwen2")
    batch = request(processor, recordings)
    batch["input_features"] = batch["input_features"][:2]
    batch["input_features_mask"] = batch["input_features_mask"][:2]
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"3 audio token\(s\) .* 2 recording\(s\)"):
            call(**batch)


@pytest.mark.parametrize("text", ["qwen2", "llama", "qwen2-tied"])
def test_text_without_audio_gives_the_output_of_the_language_model(shared_model, parts, text):
    model, _ = shared_model("moe_cif", "whisper", text)
    text_model = AutoModelForCausalLM.from_pretrained(parts[text])
    input_ids = torch.randint(3, text_model.config.vocab_size, (2, 9))
    logits = model(input_ids=input_ids).logits
    # The audio token was added after the vocabulary.
    torch.testing.assert_close(logits[..., : text_model.config.vocab_size], text_model(input_ids=input_ids).logits)


def test_outputs_as_tuple_and_logits_to_keep(shared_model, recordings):
    model, processor = shared_model("moe_cif", "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    outputs = model(**batch)
    torch.testing.assert_close(model(**batch, return_dict=False)[0], outputs.loss)
    del batch["labels"]
    kept = model(**batch, logits_to_keep=1)
    torch.testing.assert_close(kept.logits, outputs.logits[:, -1:])


@every_projector
def test_bfloat16(parts, recordings, projector_type):
    model, processor = compose(parts, projector_type)
    batch = training_batch(processor, recordings)
    wide = model(**batch)
    model.bfloat16()
    narrow = model(**batch)
    assert narrow.logits.dtype == torch.bfloat16
    assert narrow.audio_lengths.tolist() == wide.audio_lengths.tolist()
    torch.testing.assert_close(narrow.lm_loss.float(), wide.lm_loss, rtol=0.2, atol=0)
    assert generate(model, request(processor, recordings)).shape == (3, NUM_NEW_TOKENS)


def test_parts_in_bfloat16_with_a_projector_in_float32(parts, recordings):
    dtype = {"dtype": torch.bfloat16}
    model, processor = compose(parts, "moe_cif", audio_kwargs=dtype, text_kwargs=dtype)
    assert {parameter.dtype for parameter in model.model.projector.parameters()} == {torch.float32}
    gradients, outputs = backward(model, **training_batch(processor, recordings))
    assert outputs.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert generate(model, request(processor, recordings)).shape == (3, NUM_NEW_TOKENS)


@pytest.mark.parametrize("freeze_audio", [True, False])
@pytest.mark.parametrize("freeze_text", [True, False])
@pytest.mark.parametrize("text", ["qwen2", "qwen2-tied"])
def test_frozen_parts_stay_frozen(parts, recordings, freeze_audio, freeze_text, text):
    model, processor = compose(parts, "moe_cif", text=text, freeze_audio=freeze_audio, freeze_text=freeze_text)
    assert not model.training
    model.train()
    parts_of_model = {"model.projector": True, "model.audio_tower": not freeze_audio}
    parts_of_model.update({"model.language_model": not freeze_text, "lm_head": not freeze_text})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for part, trains in parts_of_model.items():
        module = model.get_submodule(part)
        for name, parameter in module.named_parameters():
            # Whisper's sinusoidal positions are never trained.
            assert parameter.requires_grad == (trains and "embed_positions" not in name), f"{part}.{name}"
        if part != "lm_head":
            assert all(one.training == trains for one in module.modules()), part

    gradients, _ = backward(model, **training_batch(processor, recordings))
    for name in before:
        trains = next(trains for part, trains in parts_of_model.items() if name.startswith(part))
        assert (name in gradients) == (trains and "embed_positions" not in name), name
    for part, trains in parts_of_model.items():
        if trains and (part != "lm_head" or text == "qwen2"):
            assert any(gradient.any() for name, gradient in gradients.items() if name.startswith(part)), part

    model.eval()
    assert not any(module.training for module in model.modules())


def test_audio_and_text_weights_equal_their_checkpoints(parts):
    model, processor = compose(parts, "moe_cif")
    text_model = AutoModelForCausalLM.from_pretrained(parts["qwen2"])
    vocab_size = text_model.config.vocab_size
    assert model.config.audio_token_id == processor.audio_token_id == vocab_size
    assert model.config.text_config.vocab_size == vocab_size + 1
    assert torch.equal(model.lm_head.weight[:vocab_size], text_model.lm_head.weight)
    for name, value in text_model.base_model.state_dict().items():
        assert torch.equal(model.model.language_model.state_dict()[name][: len(value)], value), name
    encoder = AutoModel.from_pretrained(parts["whisper"]).encoder
    for name, value in encoder.state_dict().items():
        assert torch.equal(model.model.audio_tower.state_dict()[name], value), name


def test_projector_options_reach_the_configuration(parts):
    model, _ = compose(parts, "moe", num_experts=3, num_experts_per_tok=1, conv_strides=[2])
    assert model.config.projector_config.num_experts == 3
    assert len(model.model.projector.moe.experts.up_proj) == 3
    assert model.config.projector_config.downsampling == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_expert": 4}, "num_expert"),
        ({"projector_type": "linear"}, "`projector_type`"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "`num_experts_per_tok`"),
    ],
)
def test_bad_projector_options_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        LlmAsrForConditionalGeneration.from_audio_text_pretrained("no/audio", "no/text", **options)


def test_encoders_of_an_unsupported_family_are_refused(parts):
    """If the caller passes the processor, only the model can check the encoder."""
    processor = LlmAsrProcessor.from_audio_text_pretrained(parts["whisper"], parts["qwen2"])
    with pytest.raises(ValueError, match="supported speech encoders"):
        LlmAsrForConditionalGeneration.from_audio_text_pretrained(
            parts["llama"], parts["qwen2"], processor=processor, projector_type="conv"
        )
