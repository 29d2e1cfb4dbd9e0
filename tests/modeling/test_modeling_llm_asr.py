import functools

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tiny_models import compose, save_tiny_cohere, save_tiny_gemma2, save_tiny_granite, save_tiny_wav2vec2_bert
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    GenerationConfig,
    WhisperFeatureExtractor,
    set_seed,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrModel, LlmAsrProcessor
from llm_asr.modeling.audio_tower import LlmAsrWhisperEncoder
from llm_asr.modeling.configuration_llm_asr import PROJECTOR_TYPES
from llm_asr.modeling.expert_balance import count_expert_load, load_balancing_loss, router_z_loss


TRANSCRIPTS = ["one", "uno dos tres cuatro", "two three"]
CONTEXTS = ["five", None, "one two three four"]

# Every projector behind every encoder and in front of every language model.
AUDIO_AND_TEXT = [
    ("whisper", "qwen2"),
    ("whisper", "llama"),
    ("whisper", "qwen2-tied"),
    ("wav2vec2-bert", "qwen2"),
    ("parakeet", "qwen2"),
]
COMBINATIONS = [(projector, *audio_and_text) for projector in PROJECTOR_TYPES for audio_and_text in AUDIO_AND_TEXT]

NUM_NEW_TOKENS = 6
# As many tokens for every recording, so that sequences compare without looking for their ends.
GREEDY = {"min_new_tokens": NUM_NEW_TOKENS, "max_new_tokens": NUM_NEW_TOKENS, "do_sample": False}
KERNEL_NOISE = {"rtol": 2e-4, "atol": 2e-4}

every_combination = pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
every_projector = pytest.mark.parametrize("projector_type", PROJECTOR_TYPES)
fixed_rate_projectors = pytest.mark.parametrize("projector_type", ["conv", "moe"])
cif_projectors = pytest.mark.parametrize("projector_type", ["cif", "moe_cif"])


@pytest.fixture(scope="module")
def shared_model(parts):
    """Composes each combination once; for tests that change nothing in the model."""
    return functools.cache(lambda *combination: compose(parts, *combination))


def request(processor, recordings, **kwargs):
    """Prompts of several lengths."""
    prompt = CONTEXTS[: len(recordings)]
    return processor.apply_transcription_request(recordings, **{"prompt": prompt, **kwargs})


def training_batch(processor, recordings):
    return request(processor, recordings, transcription=TRANSCRIPTS)


def one_by_one(processor, recordings, with_transcripts=False):
    """The rows of a batch as batches of their own, prepared from scratch."""
    for recording, context, transcript in zip(recordings, CONTEXTS, TRANSCRIPTS, strict=True):
        transcription = [transcript] if with_transcripts else None
        yield processor.apply_transcription_request([recording], prompt=[context], transcription=transcription)


def rows_of(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def num_labels(batch):
    return int((batch["labels"] != -100).sum())


def expand(batch, audio_token_id, lengths, padding_side="left"):
    """Rewrite the prompts with as many audio tokens as `lengths` says, as generic tooling writes them."""
    names = [name for name in ("input_ids", "labels") if name in batch]
    rows = {name: [] for name in names}
    for row, length in enumerate(lengths):
        real = batch["attention_mask"][row].bool()
        is_audio = batch["input_ids"][row][real] == audio_token_id
        repeats = torch.where(is_audio, length, 1)
        for name in names:
            rows[name].append(batch[name][row][real].repeat_interleave(repeats))

    def pad(tensors, value):
        return torch.nn.utils.rnn.pad_sequence(tensors, True, value, padding_side)

    expanded = {**batch, "input_ids": pad(rows["input_ids"], 0)}
    expanded["attention_mask"] = pad([torch.ones_like(row) for row in rows["input_ids"]], 0)
    if "labels" in batch:
        expanded["labels"] = pad(rows["labels"], -100)
    return expanded


def generate(model, batch, **kwargs):
    return model.generate(**batch, **{**GREEDY, **kwargs})


def backward(model, **batch):
    """Gradients by parameter name, and the outputs."""
    model.zero_grad()
    outputs = model(**batch)
    outputs.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, outputs


# Losses


@every_combination
def test_loss_is_the_weighted_sum_of_its_parts(shared_model, recordings, combination):
    model, processor = shared_model(*combination)
    batch = training_batch(processor, recordings)
    outputs = model(**batch)
    num_targets = num_labels(batch)

    # Targets are the last tokens of every row, which is padded on the right.
    row_lengths = batch["attention_mask"].sum(-1) - 1 + outputs.audio_lengths
    cross_entropy = 0.0
    for row, row_length in enumerate(row_lengths.tolist()):
        targets = batch["labels"][row][batch["labels"][row] != -100]
        scores = outputs.logits[row, row_length - 1 - len(targets) : row_length - 1]
        cross_entropy += F.cross_entropy(scores, targets, reduction="sum")
    torch.testing.assert_close(outputs.lm_loss, cross_entropy / num_targets)
    expected = outputs.lm_loss

    projector_config = model.config.projector_config
    assert (outputs.quantity_loss is not None) == projector_config.uses_cif
    if projector_config.uses_cif:
        assert outputs.audio_lengths.tolist() == batch["target_lengths"].tolist()
        errors = (outputs.quantities - batch["target_lengths"]).abs()
        torch.testing.assert_close(outputs.quantity_loss, errors.sum() / num_targets)
        expected = expected + projector_config.quantity_loss_coef * outputs.quantity_loss
    has_experts = "moe" in projector_config.projector_type
    assert (outputs.router_aux_loss is not None) == (outputs.router_z_loss is not None) == has_experts
    if has_experts:
        assert len(outputs.router_logits) == outputs.audio_lengths.sum()
        assert outputs.selected_experts.shape == (len(outputs.router_logits), projector_config.num_experts_per_tok)
        load = count_expert_load(outputs.router_logits, outputs.selected_experts)
        torch.testing.assert_close(outputs.router_aux_loss, load_balancing_loss(outputs.router_logits, load))
        torch.testing.assert_close(outputs.router_z_loss, router_z_loss(outputs.router_logits))
        expected = expected + projector_config.router_aux_loss_coef * outputs.router_aux_loss
        expected = expected + projector_config.router_z_loss_coef * outputs.router_z_loss
    torch.testing.assert_close(outputs.loss, expected)


@every_combination
def test_recordings_give_the_same_parts_alone_and_in_a_batch(shared_model, recordings, combination):
    model, processor = shared_model(*combination)
    batch = training_batch(processor, recordings)
    with torch.no_grad():
        together = model(**batch)
        alone = [model(**one) for one in one_by_one(processor, recordings, with_transcripts=True)]
        order = [2, 0, 1]
        reordered = model(**rows_of(batch, order))

    weights = (batch["labels"] != -100).sum(-1).float()
    lengths = together.audio_lengths.tolist()
    assert lengths == [one.audio_lengths.item() for one in alone]
    for name in ("lm_loss", "quantity_loss"):
        if getattr(together, name) is None:
            continue
        each = torch.stack([one[name] for one in alone])
        torch.testing.assert_close(together[name], (each * weights).sum() / weights.sum(), **KERNEL_NOISE)
    for name in ("audio_embeds", "router_logits", "fire_times", "quantities"):
        if getattr(together, name) is None:
            continue
        torch.testing.assert_close(together[name], torch.cat([one[name] for one in alone]), **KERNEL_NOISE)
    # Balance is a matter of all frames together, which are those of the recordings alone.
    if together.router_logits is not None:
        frames = torch.cat([one.router_logits for one in alone])
        load = count_expert_load(frames, torch.cat([one.selected_experts for one in alone]))
        torch.testing.assert_close(together.router_aux_loss, load_balancing_loss(frames, load), **KERNEL_NOISE)
        each = torch.stack([one.router_z_loss for one in alone]) * together.audio_lengths
        torch.testing.assert_close(together.router_z_loss, each.sum() / sum(lengths), **KERNEL_NOISE)
    for name in ("loss", "lm_loss", "quantity_loss", "router_aux_loss", "router_z_loss"):
        if getattr(together, name) is not None:
            torch.testing.assert_close(reordered[name], together[name], **KERNEL_NOISE)


@every_projector
def test_micro_batches_add_up_to_the_batch(parts, recordings, projector_type):
    model, processor = compose(parts, projector_type, freeze_text=False)
    # Balance is not additive over micro-batches; its share is tested below.
    model.config.projector_config.router_aux_loss_coef = 0.0
    model.config.projector_config.router_z_loss_coef = 0.0
    batch = training_batch(processor, recordings)
    num_items = torch.tensor(num_labels(batch))
    whole, outputs = backward(model, **batch)

    model.zero_grad()
    micro_outputs = []
    for rows in ([0], [1, 2]):
        micro_outputs.append(model(**rows_of(batch, rows), num_items_in_batch=num_items))
        micro_outputs[-1].loss.backward()
    for name in ("loss", "lm_loss", "quantity_loss"):
        if getattr(outputs, name) is not None:
            torch.testing.assert_close(sum(micro[name] for micro in micro_outputs), outputs[name], **KERNEL_NOISE)
    parameters = dict(model.named_parameters())
    for name, gradient in whole.items():
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("projector_type", ["moe", "moe_cif"])
def test_balance_losses_of_micro_batches_weigh_by_their_labels(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    num_items = num_labels(batch)
    for rows in ([0], [1, 2]):
        micro = rows_of(batch, rows)
        own, shared = model(**micro), model(**micro, num_items_in_batch=num_items)
        for name in ("router_aux_loss", "router_z_loss"):
            torch.testing.assert_close(shared[name], own[name] * num_labels(micro) / num_items)


@cif_projectors
def test_target_lengths_default_to_the_labels_without_the_end_token(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    explicit = model(**batch)
    implicit = model(**{name: value for name, value in batch.items() if name != "target_lengths"})
    assert implicit.audio_lengths.tolist() == batch["target_lengths"].tolist()
    torch.testing.assert_close(implicit.loss, explicit.loss)


@every_projector
def test_a_row_without_a_target_is_refused(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    batch["labels"][1] = -100
    with pytest.raises(ValueError, match=r"`labels` has no target in row\(s\) \[1\]"):
        model(**batch)


def test_an_empty_transcript_is_a_target(shared_model, recordings):
    model, processor = shared_model("moe_cif", "whisper", "qwen2")
    outputs = model(**request(processor, recordings, transcription=["", "one", ""]))
    assert outputs.audio_lengths[0] == outputs.audio_lengths[2] == 0
    assert outputs.loss.isfinite()
    only_empty = model(**request(processor, recordings[:1], transcription=[""]))
    assert only_empty.loss.isfinite()


def test_recordings_for_which_cif_fires_nothing(parts, recordings):
    """The language model then sees the prompt alone, and the quantity loss says that this is wrong."""
    model, processor = compose(parts, "moe_cif")
    torch.nn.init.constant_(model.model.projector.cif.alpha_proj.bias, -30.0)
    assert model(**request(processor, recordings)).audio_lengths.tolist() == [0, 0, 0]
    assert generate(model, request(processor, recordings)).shape == (3, NUM_NEW_TOKENS)
    gradients, outputs = backward(model, **training_batch(processor, recordings))
    assert outputs.quantity_loss > 0.5
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_several_recordings_in_a_row(shared_model, recordings):
    """Their target lengths cannot be told from the labels, and so must be given."""
    model, processor = shared_model("moe_cif", "whisper", "qwen2")
    text = [processor.audio_token + "and" + processor.audio_token]
    batch = processor(text=text, audio=recordings[:2], transcription=["one two"])
    del batch["target_lengths"]
    with pytest.raises(ValueError, match="`target_lengths` must be passed"):
        model(**batch)
    outputs = model(**batch, target_lengths=torch.tensor([3, 4]))
    assert outputs.audio_lengths.tolist() == [3, 4]
    assert outputs.logits.shape[1] == batch["input_ids"].shape[1] - 2 + 7


# Forward


@every_projector
def test_cached_encoder_output_replaces_features(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = training_batch(processor, recordings)
    expected = model(**batch)
    features, mask = batch.pop("input_features"), batch.pop("input_features_mask")
    hidden_states, mask = model.model.get_audio_hidden_states(features, mask)
    # What stands in its padding is of no matter.
    hidden_states = hidden_states.masked_fill(~mask[:, :, None], float("nan"))
    cached = {"audio_hidden_states": hidden_states, "audio_hidden_states_mask": mask}
    outputs = model(**batch, **cached)
    torch.testing.assert_close(outputs.loss, expected.loss)
    torch.testing.assert_close(outputs.logits, expected.logits, **KERNEL_NOISE)
    prompts = request(processor, recordings)
    expected = generate(model, prompts)
    del prompts["input_features"], prompts["input_features_mask"]
    assert torch.equal(generate(model, {**prompts, **cached}), expected)


def test_either_features_or_encoder_output(shared_model, recordings):
    model, processor = shared_model("conv", "whisper", "qwen2")
    batch = request(processor, recordings)
    with pytest.raises(ValueError, match="`input_features` or `audio_hidden_states`"):
        model(**batch, audio_hidden_states=torch.zeros(3, 5, 32))
    with pytest.raises(ValueError, match="`input_ids` must be passed"):
        model(input_features=batch["input_features"])


def test_a_recording_without_a_real_frame_is_refused(shared_model, recordings):
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
def test_text_alone_is_the_language_models(shared_model, parts, text):
    model, _ = shared_model("moe_cif", "whisper", text)
    text_model = AutoModelForCausalLM.from_pretrained(parts[text])
    input_ids = torch.randint(3, text_model.config.vocab_size, (2, 9))
    logits = model(input_ids=input_ids).logits
    # The audio token was added behind the vocabulary.
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


# Generation


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
    """Teacher forcing the generated tokens through `forward`, with nothing of `generate`'s own machinery."""
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    one = next(one_by_one(processor, recordings))
    tokens = generate(model, one)
    one["input_ids"] = torch.cat([one["input_ids"], tokens], dim=1)
    one["attention_mask"] = torch.ones_like(one["input_ids"])
    scores = model(**one).logits[:, -NUM_NEW_TOKENS - 1 : -1]
    # `min_new_tokens` forbids the end token.
    scores[..., model.generation_config.eos_token_id] = float("-inf")
    assert torch.equal(scores.argmax(-1), tokens)


@every_projector
def test_prompts_may_be_padded_on_either_side(shared_model, recordings, projector_type):
    model, processor = shared_model(projector_type, "whisper", "qwen2")
    batch = request(processor, recordings)
    expected = generate(model, batch)
    for row, length in enumerate(batch["attention_mask"].sum(-1).tolist()):
        # The prompts come padded on the right.
        assert batch["attention_mask"][row, :length].all()
        for name in ("input_ids", "attention_mask"):
            batch[name][row] = batch[name][row].roll(batch[name].shape[1] - length)
    assert torch.equal(generate(model, batch), expected)


@every_projector
def test_training_batches_decode_as_their_prompts_do(shared_model, recordings, projector_type):
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
    # With no choice but the most likely token, every sample is the greedy one, next to its own recording.
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
def test_recordings_alone_take_the_stored_prompt(shared_model, recordings, combination):
    model, processor = shared_model(*combination)
    prompted = request(processor, recordings, prompt=None)
    expected = generate(model, prompted)
    features, mask = prompted["input_features"], prompted["input_features_mask"]
    assert torch.equal(generate(model, {"input_features": features, "input_features_mask": mask}), expected)
    # As the stock pipeline calls it.
    assert torch.equal(generate(model, {"input_features": features, "attention_mask": mask}), expected)


def test_a_generation_config_of_ones_own_leaves_the_stored_prompt(shared_model, recordings):
    """`generate` fills in from the model's whatever a passed configuration leaves open."""
    model, processor = shared_model("conv", "whisper", "qwen2")
    prompted = request(processor, recordings, prompt=None)
    features = {name: prompted[name] for name in ("input_features", "input_features_mask")}
    tokens = model.generate(**features, generation_config=GenerationConfig(**GREEDY))
    assert torch.equal(tokens, generate(model, prompted))


def test_recordings_alone_without_a_stored_prompt_are_refused(parts, recordings):
    model, processor = compose(parts, "conv")
    del model.generation_config.transcription_prompt_ids
    features = request(processor, recordings)["input_features"]
    with pytest.raises(ValueError, match=r"`input_ids` must be passed: .*transcription_prompt_ids"):
        model.generate(input_features=features)


@cif_projectors
def test_cif_fires_as_many_as_an_expanded_prompt_says(shared_model, recordings, projector_type):
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
def test_expanded_prompts_padded_on_the_right_decode_alike(shared_model, recordings, projector_type, prepare):
    """Padding or targets between the prompt and the first new token must not be read."""
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
    # Without the prefix that the processor strips.
    assert pipe(recordings[0], generate_kwargs=GREEDY)["text"].strip() == expected[0]


# Saving and loading


def comparable(config):
    """Without what loading adds: where a configuration came from, and in which dtype its weights are."""
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
    Through the `Auto` class: weights, configurations and tokens, to the last bit; losses but for rounding, which depends on
    where weights lie in memory.
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
    torch.testing.assert_close(model.lm_head(outputs.last_hidden_state), expected.logits)
    assert torch.equal(outputs.audio_outputs.audio_lengths, expected.audio_lengths)


def test_the_headless_model_saves_and_loads(shared_model, tmp_path):
    model, _ = shared_model("moe_cif", "whisper", "qwen2")
    model.model.save_pretrained(tmp_path)
    loaded = LlmAsrModel.from_pretrained(tmp_path)
    for name, value in model.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(("text", "is_tied"), [("qwen2-tied", True), ("qwen2", False), ("llama", False)])
def test_tied_embeddings_stay_tied_and_others_apart(shared_model, tmp_path, text, is_tied):
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


# Composing and freezing


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
            # Whisper's sinusoidal positions never train.
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


def test_audio_and_text_come_from_their_checkpoints(parts):
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


@pytest.mark.parametrize("save", [save_tiny_granite, save_tiny_cohere, save_tiny_gemma2])
def test_language_models_that_change_their_logits_are_refused(parts, tmp_path, save):
    """Their head alone would not give their logits."""
    save(str(tmp_path))
    with pytest.raises(ValueError, match=r"`text` is a .*ForCausalLM"):
        compose({**parts, "other": str(tmp_path)}, "conv", text="other")


def test_encoders_of_an_unsupported_family_are_refused(parts):
    """Where the processor is given, only the model is there to notice."""
    processor = LlmAsrProcessor.from_audio_text_pretrained(parts["whisper"], parts["qwen2"])
    with pytest.raises(ValueError, match="supported speech encoders"):
        LlmAsrForConditionalGeneration.from_audio_text_pretrained(
            parts["llama"], parts["qwen2"], processor=processor, projector_type="conv"
        )


# Training


@pytest.mark.parametrize("freeze", [True, False])
@every_projector
def test_gradient_checkpointing_gives_the_same_gradients(parts, recordings, projector_type, freeze):
    model, processor = compose(parts, projector_type, freeze_audio=freeze, freeze_text=freeze)
    batch = training_batch(processor, recordings)
    model.train()
    plain, plain_outputs = backward(model, **batch)
    model.activation_checkpointing_enable()
    model.train()
    checkpointed, outputs = backward(model, **batch)
    torch.testing.assert_close(outputs.loss, plain_outputs.loss)
    torch.testing.assert_close(checkpointed, plain, **KERNEL_NOISE)


def test_gradient_checkpointing_brings_no_dropout_to_a_frozen_language_model(parts, recordings):
    model, processor = compose(parts, "moe_cif")
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    batch = training_batch(processor, recordings)
    expected = model.train()(**batch).loss
    model.activation_checkpointing_enable()
    torch.testing.assert_close(model.train()(**batch).loss, expected)


@every_projector
def test_training_lowers_the_loss(parts, recordings, projector_type):
    model, processor = compose(parts, projector_type)
    batch = training_batch(processor, recordings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


# Speech encoders


def test_an_adapter_of_wav2vec2_bert_is_refused(parts, tmp_path):
    """It is a convolution over time that sees what the padding became."""
    save_tiny_wav2vec2_bert(tmp_path, add_adapter=True, num_adapter_layers=2)
    with pytest.raises(ValueError, match="`add_adapter=True`, whose convolutions read padding"):
        compose({**parts, "adapter": str(tmp_path)}, "conv", audio="adapter")


def test_a_new_whisper_encoder_has_sinusoidal_positions(shared_model):
    """They are frozen, so that random ones would stay random."""
    model, _ = shared_model("conv", "whisper", "qwen2")
    untrained = LlmAsrForConditionalGeneration(model.config)
    expected = WhisperEncoder(model.config.audio_config).embed_positions.weight
    torch.testing.assert_close(untrained.model.audio_tower.embed_positions.weight, expected)


def whisper_encoders(parts):
    whisper = AutoModel.from_pretrained(parts["whisper"]).encoder.eval()
    ours = LlmAsrWhisperEncoder(whisper.config).eval()
    ours.load_state_dict(whisper.state_dict())
    assert type(whisper) is WhisperEncoder
    return ours, whisper


def test_a_full_window_is_encoded_as_whisper_does(parts):
    ours, whisper = whisper_encoders(parts)
    features = torch.randn(2, 16, 2 * whisper.config.max_source_positions)
    hidden_states, mask = ours(features, torch.ones(2, features.shape[-1]))
    assert mask.all()
    torch.testing.assert_close(hidden_states, whisper(features).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_padding_beyond_the_window_is_cut_and_frames_beyond_it_are_refused(parts):
    ours, whisper = whisper_encoders(parts)
    longest = 2 * whisper.config.max_source_positions
    features = torch.randn(1, 16, longest + 2)
    mask = (torch.arange(longest + 2) < longest)[None]
    hidden_states, _ = ours(features, mask)
    torch.testing.assert_close(hidden_states, whisper(features[..., :longest]).last_hidden_state, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=rf"{longest + 2} mel frames .* takes {longest}"):
        ours(features, torch.ones_like(mask))


@pytest.mark.parametrize("length", [1, 2, 37, 300])
def test_whisper_padding_does_not_matter(parts, length):
    ours, _ = whisper_encoders(parts)
    features = torch.randn(2, 16, 300)
    alone, alone_mask = ours(features[:1, :, :length], torch.ones(1, length))
    assert alone_mask.shape[1] == (length + 1) // 2
    soiled = features.clone()
    soiled[0, :, length:] = float("nan")
    mask = torch.arange(300) < torch.tensor([[length], [300]])
    together, mask = ours(soiled, mask)
    torch.testing.assert_close(together[0][mask[0]], alone[0], **KERNEL_NOISE)
    torch.testing.assert_close(together[1], ours(features[1:], torch.ones(1, 300))[0][0], **KERNEL_NOISE)


def recordings_that_end_in_silence(*num_samples):
    """So that the last window of a recording, which reaches beyond its end, holds nothing there."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.cat([0.1 * torch.randn(count, generator=generator), torch.zeros(400)]).numpy() for count in num_samples
    ]


def test_max_length_is_what_whisper_does(parts):
    """Also for quiet recordings, whose silence is the extractor's floor."""
    ours, whisper = whisper_encoders(parts)
    extractor = WhisperFeatureExtractor.from_pretrained(parts["whisper"])
    loud, long = recordings_that_end_in_silence(7600, 30000)
    features = extractor(
        [loud, long, 1e-5 * long], sampling_rate=16000, return_attention_mask=True, return_tensors="pt"
    )
    expected = whisper(features["input_features"]).last_hidden_state
    # Cut as the processor cuts them, with anything at all where padding was.
    longest = int(features["attention_mask"].sum(-1).max())
    mask = features["attention_mask"][:, :longest]
    cut = features["input_features"][..., :longest].masked_fill(~mask[:, None].bool(), float("nan"))
    hidden_states, real = ours(cut, mask, padding="max_length")
    assert real.sum(-1).tolist() == [25, 95, 95]
    torch.testing.assert_close(hidden_states[real], expected[:, : real.shape[1]][real], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(hidden_states[real], ours(cut, mask)[0][real], atol=1e-2)


def test_encoder_padding_is_a_part_of_the_checkpoint(parts, tmp_path):
    model, processor = compose(parts, "moe_cif", encoder_padding="max_length")
    model.save_pretrained(tmp_path)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.encoder_padding == "max_length"
    audio = recordings_that_end_in_silence(7600, 30000)
    together = processor.apply_transcription_request(audio)
    tokens = loaded.generate(**together, **GREEDY)
    for row, recording in enumerate(audio):
        for audio_padding in ("longest", "max_length"):
            alone = processor.apply_transcription_request(recording, audio_padding=audio_padding)
            assert torch.equal(loaded.generate(**alone, **GREEDY)[0], tokens[row])
    plain, _ = compose(parts, "moe_cif")
    longest = plain.model.get_audio_hidden_states(together["input_features"], together["input_features_mask"])[0]
    padded = loaded.model.get_audio_hidden_states(together["input_features"], together["input_features_mask"])[0]
    assert longest.shape == padded.shape
    assert not torch.allclose(longest, padded, atol=1e-2)


@pytest.mark.parametrize("projector_type", ["conv", "moe_cif"])
def test_training_computes_logits_at_labels_alone(parts, recordings, projector_type):
    model, processor = compose(parts, projector_type, freeze_text=False)
    batch = processor.apply_transcription_request(recordings, transcription=["one", "two three", "cuatro"])
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[:-1].numel()))
    found = []
    for skip_logits in (True, False):
        model.zero_grad()
        outputs = model(**batch, skip_logits=skip_logits, num_items_in_batch=17)
        outputs.loss.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found.append((outputs.lm_loss, outputs.logits, gradients))
    (loss, logits, gradients), (expected_loss, expected_logits, expected_gradients) = found
    assert logits is None
    assert expected_logits is not None
    assert rows == [int((batch["labels"] != -100).sum()), expected_logits.shape[:-1].numel()]
    torch.testing.assert_close(loss, expected_loss)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected)

    assert model(**batch).logits is not None
    assert (
        model(**{name: batch[name] for name in ("input_ids", "input_features")}, skip_logits=True).logits is not None
    )
    model.train()
    assert model(**batch).logits is None
