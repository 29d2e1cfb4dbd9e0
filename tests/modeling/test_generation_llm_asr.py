"""Length limits, confidence, temperature fallback and verified drafts."""

import pytest
import torch
from tiny_models import compose
from transformers import set_seed

from llm_asr.modeling.decoding_guards import SPARE_TOKENS, compression_ratio
from llm_asr.modeling.draft_decoding import DraftAligner
from llm_asr.modeling.draft_head import DraftHead
from llm_asr.modeling.transcript_tokens import transcript_tokens


def make(parts, projector_type="cif", **kwargs):
    if projector_type in ("cif", "moe_cif"):
        kwargs = {"draft_head": True, "expected_tokens_per_second": 6.0, **kwargs}
    return compose(parts, projector_type, **kwargs)


# --- Length -----------------------------------------------------------------------------------------------------------


def test_each_recording_is_bounded_by_its_own_length(parts, recordings):
    model, processor = make(parts, "conv")
    model.generation_config.max_new_tokens_per_second = 4.0
    # Suppress the end token, so that no row ends by itself, and the padding token, so that padding is recognisable.
    pad = processor.audio_token_id
    options = {"suppress_tokens": [processor.tokenizer.eos_token_id, pad], "pad_token_id": pad}
    inputs = processor.apply_transcription_request(recordings)
    tokens = model.generate(**inputs, **options)
    written = (tokens != pad).sum(-1).tolist()
    # Frames last 20 ms. A started frame counts.
    seconds = inputs["input_features_mask"][:, ::2].sum(-1) / 50
    assert written == [SPARE_TOKENS + int(limit) for limit in (seconds * 4.0).ceil()]
    for index, recording in enumerate(recordings):
        alone = model.generate(**processor.apply_transcription_request(recording), **options)
        assert torch.equal(alone[0], tokens[index, : written[index]])


def test_a_length_set_by_the_caller_takes_precedence(parts, recordings):
    model, processor = make(parts, "conv")
    model.generation_config.max_new_tokens_per_second = 1.0
    model.generation_config.eos_token_id = None
    inputs = processor.apply_transcription_request(recordings)
    assert model.generate(**inputs, max_new_tokens=30).shape[1] == 30
    assert model.generate(**inputs).shape[1] == SPARE_TOKENS + 3
    model.generation_config.max_new_tokens = 5
    assert model.generate(**inputs).shape[1] == 5


def test_beams_are_bounded_too(parts, recordings):
    model, processor = make(parts, "conv")
    model.generation_config.max_new_tokens_per_second = 1.0
    model.generation_config.eos_token_id = None
    tokens = model.generate(**processor.apply_transcription_request(recordings), num_beams=3, pad_token_id=0)
    assert tokens.shape[1] == SPARE_TOKENS + 3


# --- Confidence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expanded", [False, True])
def test_confidence_equals_the_probabilities_of_the_steps(parts, recordings, expanded):
    model, processor = make(parts, "conv")
    inputs = processor.apply_transcription_request(recordings)
    if expanded:
        lengths = model.get_audio_features(
            inputs["input_features"], input_features_mask=inputs["input_features_mask"]
        ).audio_lengths.tolist()
        prompts = processor.apply_transcription_request(recordings, tokenize=False)
        token = processor.audio_token
        prompts = [prompt.replace(token, token * length) for prompt, length in zip(prompts, lengths, strict=True)]
        inputs |= processor.tokenize_requests(prompts)
    # Use a generated token as a further end token, so that rows end at different places.
    plain = model.generate(**inputs, max_new_tokens=12)[:, -12:]
    model.generation_config.eos_token_id = [int(plain[0, 4]), processor.tokenizer.eos_token_id]
    options = {"return_dict_in_generate": True, "output_confidence": True, "pad_token_id": 0, "suppress_tokens": None}
    outputs = model.generate(**inputs, max_new_tokens=12, output_logits=True, **options)
    steps = torch.stack(outputs.logits, dim=1).float().log_softmax(-1)
    tokens = outputs.sequences[:, -steps.shape[1] :]
    for row, found, silent, row_tokens in zip(
        steps, outputs.avg_logprobs, outputs.no_speech_probs, tokens.tolist(), strict=True
    ):
        ends = [place for place, token in enumerate(row_tokens) if token in model.generation_config.eos_token_id]
        length = ends[0] + 1 if ends else len(row_tokens)
        expected = row[range(length), row_tokens[:length]].mean()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(silent, row[0, model.generation_config.eos_token_id].exp().sum())


def force(model, inputs, tokens):
    """Log-probabilities of tokens by another pass, of shape `(batch_size, length, vocab_size)`."""
    merged, _ = model.model.merge_audio_and_text(**inputs, padding_side="left")
    embeds = torch.cat([merged.inputs_embeds, model.get_input_embeddings()(tokens)], dim=1)
    mask = torch.nn.functional.pad(merged.attention_mask, (0, tokens.shape[1]), value=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    return logits[:, -tokens.shape[1] - 1 : -1].float().log_softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"use_draft": False},
        {"use_draft": True},
        {"do_sample": True, "temperature": 2.0},
        {"do_sample": True, "use_draft": True},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"repetition_penalty": 1.5},
        {"temperature": [0.0], "logprob_threshold": -100.0},
    ],
)
def test_confidence_takes_no_pass_of_its_own(parts, recordings, forwards, options):
    model, processor = make(parts, "cif")
    inputs = processor.apply_transcription_request(recordings)
    options = {**options, "max_new_tokens": 8, "return_dict_in_generate": True}
    # Another end than that of other tests, so that rows end at different places.
    model.generation_config.eos_token_id = int(model.generate(**inputs, **options).sequences[0, 4])
    model.generation_config.pad_token_id = 0
    forwards.watch(model)
    set_seed(0)
    expected = model.generate(**inputs, **options)
    most, forwards.count = forwards.count, 0
    set_seed(0)
    outputs = model.generate(**inputs, **options, output_confidence=True)
    assert forwards.count == most
    assert torch.equal(outputs.sequences, expected.sequences)
    assert set(outputs) - set(expected) <= {"avg_logprobs", "no_speech_probs"}
    logprobs = force(model, inputs, outputs.sequences)
    is_end = outputs.sequences == model.generation_config.eos_token_id
    assert is_end[0].any()
    written = is_end.cumsum(-1) - is_end.long() == 0
    chosen = logprobs.gather(-1, outputs.sequences[..., None])[..., 0]
    averages = torch.stack([row[kept].mean() for row, kept in zip(chosen, written, strict=True)])
    torch.testing.assert_close(outputs.avg_logprobs, averages, rtol=1e-4, atol=1e-4)
    silences = logprobs[:, 0, model.generation_config.eos_token_id].exp()
    torch.testing.assert_close(outputs.no_speech_probs, silences, rtol=1e-4, atol=1e-4)


def test_the_compression_ratio_is_high_for_repetition():
    varied = torch.randperm(150_000)[:100].tolist()
    assert compression_ratio(varied, 150_000) < 1.1
    assert compression_ratio([7, 8] * 50, 150_000) > 5
    assert compression_ratio([], 150_000) == 0.0


# --- Fallback ---------------------------------------------------------------------------------------------------------


def test_a_confident_transcript_is_greedy(parts, recordings):
    model, processor = make(parts, "conv")
    inputs = processor.apply_transcription_request(recordings)
    greedy = model.generate(**inputs)
    outputs = model.generate(**inputs, temperature=[0.0, 1.0], logprob_threshold=-1e9, return_dict_in_generate=True)
    assert torch.equal(outputs.sequences, greedy)
    assert outputs.temperatures.tolist() == [0.0] * 3
    assert torch.equal(model.generate(**inputs, temperature=(0.0, 1.0), logprob_threshold=-1e9), greedy)


def test_only_uncertain_transcripts_are_decoded_again(parts, recordings):
    model, processor = make(parts, "conv")
    inputs = processor.apply_transcription_request(recordings)
    options = {"return_dict_in_generate": True, "max_new_tokens": 12}
    first = model.generate(**inputs, output_confidence=True, **options)
    threshold = float(first.avg_logprobs.sort().values[:2].mean())
    outputs = model.generate(**inputs, temperature=[0.0, 0.8, 1.0], logprob_threshold=threshold, **options)
    doubtful = first.avg_logprobs < threshold
    assert doubtful.sum() == 1
    assert torch.equal(outputs.sequences[~doubtful], first.sequences[~doubtful])
    assert outputs.temperatures[~doubtful].tolist() == [0.0, 0.0]
    assert outputs.temperatures[doubtful] > 0
    assert not torch.equal(outputs.sequences[doubtful], first.sequences[doubtful])


def test_repetitive_transcripts_are_decoded_at_every_temperature(parts, recordings):
    model, processor = make(parts, "conv")
    inputs = processor.apply_transcription_request(recordings)
    outputs = model.generate(
        **inputs, temperature=[0.0, 0.5, 1.5], compression_ratio_threshold=0.01, return_dict_in_generate=True
    )
    assert outputs.temperatures.tolist() == [1.5] * 3
    assert (outputs.compression_ratios > 0.01).all()


def test_silence_is_empty_and_not_decoded_again(parts, recordings):
    model, processor = make(parts, "conv")
    inputs = processor.apply_transcription_request(recordings)
    outputs = model.generate(
        **inputs,
        temperature=[0.0, 1.0],
        logprob_threshold=0.0,
        no_speech_threshold=0.0,
        return_dict_in_generate=True,
    )
    assert outputs.temperatures.tolist() == [0.0] * 3
    assert processor.batch_decode(outputs.sequences) == [""] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": [0.0, 1.0]}, "compression_ratio_threshold"),
        ({"temperature": [], "logprob_threshold": -1.0}, "`temperature`"),
        ({"temperature": [0.0, -1.0], "logprob_threshold": -1.0}, "`temperature`"),
        ({"logprob_threshold": -1.0}, "`temperature` must list"),
        ({"temperature": [0.0, 1.0], "compression_ratio_threshold": 2.0, "no_speech_threshold": 0.5}, "logprob"),
        ({"output_confidence": True}, "return_dict_in_generate"),
        ({"output_confidence": True, "return_dict_in_generate": True, "num_return_sequences": 2}, "num_return"),
        ({"use_draft": True}, "draft_head"),
    ],
)
def test_contradictory_options_are_refused(parts, recordings, options, message):
    model, processor = make(parts, "conv")
    with pytest.raises(ValueError, match=message):
        model.generate(**processor.apply_transcription_request(recordings[0]), **options)


# --- Drafts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projector_type", ["cif", "moe_cif"])
@pytest.mark.parametrize("expanded", [False, True])
def test_drafts_do_not_change_the_tokens(parts, recordings, projector_type, expanded):
    model, processor = make(parts, projector_type)
    for recording in recordings:
        inputs = processor.apply_transcription_request(recording)
        if expanded:
            token = processor.audio_token
            (prompt,) = processor.apply_transcription_request(recording, tokenize=False)
            inputs |= processor.tokenize_requests([prompt.replace(token, 5 * token)])
        greedy = model.generate(**inputs, use_draft=False)
        assert torch.equal(model.generate(**inputs, use_draft=True), greedy)
        options = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}
        again = model.generate(**inputs, **options, use_draft=True)
        assert torch.equal(again, model.generate(**inputs, **options, use_draft=False))


def test_a_right_draft_takes_one_pass_and_a_wrong_token_one_more(parts, recordings, forwards):
    model, processor = make(parts)
    inputs = processor.apply_transcription_request(recordings[1])
    *transcript, end = model.generate(**inputs, max_new_tokens=14, use_draft=False)[0].tolist()
    assert len(set(transcript)) > 5
    # From now on the last token ends the transcript.
    transcript = transcript[: transcript.index(end)] if end in transcript else transcript
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    greedy = model.generate(**inputs, use_draft=False)
    assert greedy[0].tolist() == [*transcript, end]
    forwards.watch(model)

    def passes(draft):
        forwards.count = 0
        assert torch.equal(model.generate(**inputs, draft_ids=torch.tensor(draft)), greedy)
        return forwards.count

    middle = len(transcript) // 2
    other = next(token for token in range(3, 99) if token not in transcript)
    assert passes(transcript) == 1
    assert passes([*transcript[:middle], other, *transcript[middle + 1 :]]) == 2
    # After too many or too few tokens, one or two passes are needed until the draft matches again.
    assert passes([*transcript[:middle], other, *transcript[middle:]]) <= 4
    assert passes([*transcript[:middle], *transcript[middle + 1 :]]) <= 4
    # The draft lacks two tokens at the start, like the name of the language before the transcript.
    assert passes(transcript[2:]) <= 4
    assert passes([other] * len(transcript)) == len(transcript) + 1


@pytest.mark.parametrize("projector_type", ["conv", "moe_cif"])
def test_a_draft_of_the_caller_is_verified(parts, recordings, forwards, projector_type):
    """Such as the transcript of the first part of the recording. It needs no draft head."""
    model, processor = compose(parts, projector_type)
    inputs = processor.apply_transcription_request(recordings[1])
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    greedy = model.generate(**inputs, **options, use_draft=False)
    forwards.watch(model)
    for draft_ids, most in ((greedy[0], 1), (greedy[0, :5], 4), (greedy[0, 2:], 8), (torch.tensor([5, 7]), 8)):
        forwards.count = 0
        assert torch.equal(model.generate(**inputs, **options, draft_ids=draft_ids), greedy)
        assert forwards.count <= most
    with pytest.raises(ValueError, match="`draft_ids` take the place of the draft head"):
        model.generate(**inputs, draft_ids=greedy[0], use_draft=True)
    with pytest.raises(ValueError, match=r"`draft_ids` has 1 draft\(s\) for 3 row\(s\)"):
        model.generate(**processor.apply_transcription_request(recordings), draft_ids=greedy[0])
    with pytest.raises(ValueError, match="`draft_ids` need a recording"):
        model.generate(inputs["input_ids"], draft_ids=greedy[0])
    with pytest.raises(ValueError, match="`num_beams` must be 1"):
        model.generate(**inputs, draft_ids=greedy[0], num_beams=2)


def test_drafts_with_sampling_and_fallback(parts, recordings):
    model, processor = make(parts)
    inputs = processor.apply_transcription_request(recordings[1])
    greedy = model.generate(**inputs, use_draft=False)
    outputs = model.generate(**inputs, use_draft=True, temperature=[0.0, 1.0], logprob_threshold=-1e9)
    assert torch.equal(outputs, greedy)
    assert model.generate(**inputs, use_draft=True, temperature=[0.0, 1.0], logprob_threshold=0.0).shape[1]


def test_drafts_are_equal_alone_and_in_a_batch(parts, recordings):
    model, _ = make(parts)
    head = DraftHead(model.config)
    lengths = torch.tensor([3, 0, 1, 4, 0])
    embeds = torch.randn(8, model.config.text_config.hidden_size)
    together = head(embeds, lengths)
    alone = [head(part, torch.tensor([len(part)])) for part in embeds.split(lengths.tolist())]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_residual_draft_head_adds_to_the_embeddings(parts, recordings, tmp_path):
    model, processor = make(parts, draft_residual=True)
    plain, residual = DraftHead(make(parts)[0].config), model.draft_head
    plain.load_state_dict(residual.state_dict())
    embeds, lengths = torch.randn(5, model.config.text_config.hidden_size), torch.tensor([3, 2])
    torch.testing.assert_close(residual(embeds, lengths), embeds + plain(embeds, lengths))

    batch = processor.apply_transcription_request(recordings, transcription=["one", "two", "three"])
    loss = model(**batch).draft_loss
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(type(model).from_pretrained(tmp_path)(**batch).draft_loss, loss)
    with pytest.raises(ValueError, match="`draft_residual` is an option of the draft head"):
        make(parts, draft_residual=True, draft_head=False)


def test_transcript_tokens_are_only_the_transcripts():
    labels = torch.tensor(
        [[-100, 8, 9, 5, 6, 7, 2], [-100, -100, 5, 2, -100, -100, -100], [-100, 2, -100, -100, -100, -100, -100]]
    )
    found = transcript_tokens(labels, [2], torch.tensor([3, 1, 0]))
    assert found.tolist() == [5, 6, 7, 5]
    assert transcript_tokens(labels, [2], torch.tensor([-1, 1, -1])).tolist() == [5]
    with pytest.raises(ValueError, match="one recording a row, and there are 2 recordings in 3 rows"):
        transcript_tokens(labels, [2], torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="fewer tokens"):
        transcript_tokens(labels, [2], torch.tensor([3, 2, 0]))


def test_the_draft_loss_is_the_cross_entropy_of_the_transcript(parts, recordings):
    model, processor = make(parts, draft_loss_coef=0.7)
    batch = processor.apply_transcription_request(
        recordings,
        language=["en", "es", None],
        transcription=["one two", "", "tres"],
        identify_language=[True, True, False],
    )
    outputs = model(**batch)
    assert outputs.audio_lengths.tolist() == batch["target_lengths"].tolist()
    tokens = torch.cat([torch.tensor(processor._tokenize(text)) for text in ("one two", "tres")])
    logits = model.draft(outputs.audio_embeds, outputs.audio_lengths)
    num_labels = int((batch["labels"] != -100).sum())
    expected = torch.nn.functional.cross_entropy(logits, tokens, reduction="sum") / num_labels
    torch.testing.assert_close(outputs.draft_loss, expected)
    torch.testing.assert_close(outputs.loss, outputs.lm_loss + outputs.quantity_loss + 0.7 * outputs.draft_loss)
    outputs.loss.backward()
    assert model.draft_head.up_proj.weight.grad.abs().sum() > 0
    assert model.lm_head.weight.grad is None


def test_the_draft_is_continued_after_matching_tokens():
    draft = torch.tensor([11, 12, 13, 14, 15, 2])

    def left(accepted):
        aligner = DraftAligner(draft.tolist())
        for token in accepted:
            aligner.accept(token)
        return aligner.rest()

    assert left([]) == draft.tolist()
    assert left([11, 12, 99]) == [14, 15, 2]
    assert left([11, 12, 99, 13]) == [14, 15, 2]
    assert left([11, 13, 14]) == [15, 2]
    assert left([98, 99, 11]) == [12, 13, 14, 15, 2]


@pytest.mark.parametrize("projector_type", ["conv", "moe", "cif", "moe_cif"])
def test_a_static_cache_gives_the_same_tokens(parts, recordings, projector_type):
    model, processor = make(parts, projector_type)
    inputs = processor.apply_transcription_request(recordings)
    expected = model.generate(**inputs)
    assert torch.equal(model.generate(**inputs, cache_implementation="static"), expected)
    assert torch.equal(model.generate(**inputs, cache_implementation="static", max_cache_len=200), expected)
