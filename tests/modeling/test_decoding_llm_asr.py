"""Tokens of `generate` for all projectors, prompts and paddings."""

import pytest
import torch
from model_batches import (
    GREEDY,
    KERNEL_NOISE,
    NUM_NEW_TOKENS,
    cif_projectors,
    every_combination,
    every_projector,
    expand,
    fixed_rate_projectors,
    generate,
    one_by_one,
    request,
    rows_of,
    training_batch,
)
from tiny_models import compose
from transformers import AutomaticSpeechRecognitionPipeline, GenerationConfig, set_seed


@every_combination
def test_greedy_tokens_do_not_depend_on_the_batch(shared_model, recordings, combination):
    model, processor = shared_model(*combination)
    batch = request(processor, recordings)
    together = generate(model, batch)
    assert together.shape == (3, NUM_NEW_TOKENS)
    alone = torch.cat([generate(model, one) for one in one_by_one(processor, recordings)])
    assert torch.equal(together, alone)
    order = [1, 2, 0]
    assert torch.equal(generate(model, rows_of(batch, order)), together[order])


@every_projector
def test_greedy_tokens_do_not_depend_on_cache_and_attention(parts, recordings, projector_type):
    model, processor = compose(parts, projector_type)
    batch = request(processor, recordings)
    assert model.config.text_config._attn_implementation == "sdpa"
    expected = generate(model, batch)
    assert torch.equal(generate(model, batch, use_cache=False), expected)
    model.set_attn_implementation("eager")
    assert model.model.audio_tower.config._attn_implementation == "eager"
    assert model.model.language_model.config._attn_implementation == "eager"
    assert torch.equal(generate(model, batch), expected)


@pytest.mark.parametrize("projector_type", ["conv", "moe_cif"])
def test_greedy_tokens_are_the_most_likely_of_a_forward_pass(shared_model, recordings, projector_type):
    """Teacher-forces the generated tokens through `forward`, without any code of `generate`."""
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    one = next(one_by_one(processor, recordings))
    tokens = generate(model, one)
    one["input_ids"] = torch.cat([one["input_ids"], tokens], dim=1)
    one["attention_mask"] = torch.ones_like(one["input_ids"])
    scores = model(**one).logits[:, -NUM_NEW_TOKENS - 1 : -1]
    # `min_new_tokens` suppresses the end token.
    scores[..., model.generation_config.eos_token_id] = float("-inf")
    assert torch.equal(scores.argmax(-1), tokens)


@every_projector
def test_prompts_may_be_padded_on_either_side(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = request(processor, recordings)
    expected = generate(model, batch)
    for row, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        # The prompts are padded on the right.
        assert batch["attention_mask"][row, :length].all()
        for name in ("input_ids", "attention_mask"):
            batch[name][row] = batch[name][row].roll(batch[name].shape[1] - length)
    assert torch.equal(generate(model, batch), expected)


@every_projector
def test_training_batches_decode_like_their_prompts(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    expected = generate(model, request(processor, recordings))
    assert torch.equal(generate(model, training_batch(processor, recordings)), expected)


@every_projector
def test_sampling(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = request(processor, recordings)
    samples = []
    for seed in (0, 0, 1):
        set_seed(seed)
        samples.append(generate(model, batch, do_sample=True, num_return_sequences=2))
    assert samples[0].shape == (6, NUM_NEW_TOKENS)
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    # With top-k of one, every sample equals the greedy transcript of its own recording.
    certain = generate(model, batch, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(certain, generate(model, batch).repeat_interleave(2, dim=0))


@every_projector
def test_beam_search(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = request(processor, recordings)
    together = generate(model, batch, num_beams=3)
    alone = torch.cat([generate(model, one, num_beams=3) for one in one_by_one(processor, recordings)])
    assert torch.equal(together, alone)
    beams = generate(
        model, batch, num_beams=3, num_return_sequences=3, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(beams.sequences[::3], together)
    assert (beams.sequences_scores.view(3, 3).diff(dim=1) <= 0).all()


@every_combination
def test_recordings_without_a_prompt_use_the_stored_prompt(shared_model, recordings, combination):
    model, processor = shared_model(*combination)
    prompted = request(processor, recordings, prompt=None)
    expected = generate(model, prompted)
    features, mask = prompted["input_features"], prompted["input_features_mask"]
    assert torch.equal(generate(model, {"input_features": features, "input_features_mask": mask}), expected)
    # The stock pipeline calls the mask `attention_mask`.
    assert torch.equal(generate(model, {"input_features": features, "attention_mask": mask}), expected)


def test_a_custom_generation_config_keeps_the_stored_prompt(shared_model, recordings):
    """`generate` takes options that a passed configuration does not set from the model's configuration."""
    model, processor = shared_model("conv", "whisper", "qwen2")
    prompted = request(processor, recordings, prompt=None)
    features = {name: prompted[name] for name in ("input_features", "input_features_mask")}
    tokens = model.generate(**features, generation_config=GenerationConfig(**GREEDY))
    assert torch.equal(tokens, generate(model, prompted))


def test_recordings_without_any_prompt_are_refused(parts, recordings):
    model, processor = compose(parts, "conv")
    del model.generation_config.transcription_prompt_ids
    features = request(processor, recordings)["input_features"]
    with pytest.raises(ValueError, match=r"`input_ids` must be passed: .*transcription_prompt_ids"):
        model.generate(input_features=features)


@cif_projectors
def test_cif_fires_as_many_embeddings_as_an_expanded_prompt_has_audio_tokens(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    lengths = [2, 11, 5]
    batch = expand(request(processor, recordings), model.config.audio_token_id, lengths)
    outputs = model(**batch)
    assert outputs.audio_lengths.tolist() == lengths
    assert outputs.logits.shape[1] == batch["input_ids"].shape[1]
    sequences = generate(model, batch)
    assert torch.equal(sequences[:, :-NUM_NEW_TOKENS], batch["input_ids"])
    alone = [
        generate(model, expand(one, model.config.audio_token_id, [length]))[:, -NUM_NEW_TOKENS:]
        for one, length in zip(one_by_one(processor, recordings), lengths, strict=True)
    ]
    assert torch.equal(sequences[:, -NUM_NEW_TOKENS:], torch.cat(alone))


@fixed_rate_projectors
def test_fixed_rates_check_an_expanded_prompt(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = request(processor, recordings)
    lengths = model(**batch).audio_lengths.tolist()
    expanded = expand(batch, model.config.audio_token_id, lengths)
    sequences = generate(model, expanded)
    assert torch.equal(sequences, torch.cat([expanded["input_ids"], generate(model, batch)], dim=1))
    wrong = [lengths[0], lengths[1] + 1, lengths[2]]
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=rf"{wrong[1]},.*{lengths[1]},".replace("[", r"\[")):
            call(**expand(batch, model.config.audio_token_id, wrong))


@fixed_rate_projectors
def test_expanded_training_batches_have_the_loss_of_single_audio_tokens(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    single = model(**batch)
    for padding_side in ("left", "right"):
        expanded = expand(batch, model.config.audio_token_id, single.audio_lengths.tolist(), padding_side)
        torch.testing.assert_close(model(**expanded).loss, single.loss, **KERNEL_NOISE)


@fixed_rate_projectors
@pytest.mark.parametrize("prepare", [request, training_batch])
def test_expanded_prompts_padded_on_the_right_decode_equally(shared_model, recordings, projector_type, prepare):
    """The model must not read padding or targets between the prompt and the first new token."""
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = request(processor, recordings)
    lengths = model(**batch).audio_lengths.tolist()
    expanded = expand(prepare(processor, recordings), model.config.audio_token_id, lengths, "right")
    assert torch.equal(generate(model, expanded)[:, -NUM_NEW_TOKENS:], generate(model, batch))


def test_the_stock_pipeline_takes_the_seq2seq_branch(shared_model, recordings):
    model, processor = shared_model("moe_cif", "whisper", "qwen2")
    pipe = AutomaticSpeechRecognitionPipeline(
        model=model, tokenizer=processor.tokenizer, feature_extractor=processor.feature_extractor
    )
    assert pipe.type == "seq2seq"
    expected = processor.batch_decode(generate(model, request(processor, recordings[:1], prompt=None)))
    # The processor strips a leading space.
    assert pipe(recordings[0], generate_kwargs=GREEDY)["text"].strip() == expected[0]
