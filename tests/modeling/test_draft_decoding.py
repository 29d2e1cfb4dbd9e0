"""Drafts of whole batches: rows are accepted to their own lengths, and the tokens are those of greedy decoding."""

import pytest
import torch
from tiny_models import compose
from transformers import TextStreamer
from transformers.generation import LogitsProcessorList, MaxTimeCriteria, StoppingCriteriaList, TopKLogitsWarper

from llm_asr.modeling import draft_decoding


def batch_greedily(model, inputs, **options):
    """Greedy decoding by Transformers."""
    return model.generate(**inputs, **options, use_draft=False)


def edit(tokens, edits):
    """Delete, insert or replace a token at each place of `edits`, from the end."""
    tokens = list(tokens)
    for place, kind in edits:
        tokens[place : place + (kind != "insert")] = [] if kind == "delete" else [7]
    return torch.tensor(tokens, dtype=torch.long)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_new_tokens": 9},
        {"max_new_tokens": 12, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [5]},
        {"max_new_tokens": 12, "min_new_tokens": 4},
    ],
)
def test_rows_of_a_batch_are_accepted_to_their_own_length(parts, recordings, forwards, options, use_cache):
    model, processor = compose(parts, "conv")
    batch = [*recordings, recordings[1]]
    inputs = processor.apply_transcription_request(batch, prompt=["five", None, "one two three four", None])
    # Several tokens end a row, at places of their own.
    plain = batch_greedily(model, inputs, max_new_tokens=12)
    model.generation_config.eos_token_id = [int(plain[0, 7]), int(plain[1, 10])]
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    greedy = batch_greedily(model, inputs, **options)
    edits = [[], [(5, "replace"), (2, "insert")], [(6, "delete"), (1, "delete")], [(3, "insert")]]
    drafts = [edit(row, places) for row, places in zip(greedy.tolist(), edits, strict=True)]
    forwards.watch(model)
    batch_greedily(model, inputs, **options)
    most, forwards.count = forwards.count, 0
    found = model.generate(**inputs, **options, draft_ids=drafts, use_cache=use_cache)
    assert torch.equal(found, greedy)
    assert forwards.count < most
    for row, (recording, prompt) in enumerate(zip(batch, ["five", None, "one two three four", None], strict=True)):
        alone = processor.apply_transcription_request([recording], prompt=[prompt])
        tokens = model.generate(**alone, **options, draft_ids=drafts[row], use_cache=use_cache)
        assert torch.equal(tokens, batch_greedily(model, alone, **options))
        # Transformers penalises repetitions in a batch of embedded prompts from another token on.
        if "repetition_penalty" not in options:
            assert torch.equal(tokens[0], greedy[row, : tokens.shape[1]])
    # A row without a draft takes one token from each pass.
    drafts[0] = drafts[0][:0]
    assert torch.equal(model.generate(**inputs, **options, draft_ids=drafts, use_cache=use_cache), greedy)


def test_drafts_are_used_where_nothing_stands_against_them(parts, recordings, forwards):
    model, processor = compose(parts, "cif", draft_head=True, expected_tokens_per_second=6.0)
    inputs = processor.apply_transcription_request(recordings)
    transcripts = batch_greedily(model, inputs, max_new_tokens=10)
    lengths = model.get_audio_features(
        inputs["input_features"], inputs["input_features_mask"], return_dict=True
    ).audio_lengths.tolist()
    drafted = torch.cat([row[:length] for row, length in zip(transcripts, lengths, strict=True)])
    model.draft = lambda *_: torch.nn.functional.one_hot(drafted, model.config.text_config.vocab_size)
    forwards.watch(model)

    def passes(**options):
        forwards.count = 0
        assert torch.equal(model.generate(**inputs, max_new_tokens=10, **options), transcripts)
        return forwards.count

    most = passes(use_draft=False)
    assert passes() == passes(use_draft=True) < most
    # The caller sees single tokens, or asks for another way of decoding.
    for options in (
        {"logits_processor": LogitsProcessorList([TopKLogitsWarper(5)])},
        {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(1e9)])},
        {"do_sample": True, "top_k": 1},
        {"cache_implementation": "static"},
        {"prefix_allowed_tokens_fn": lambda *_: list(range(model.config.text_config.vocab_size))},
    ):
        assert passes(**options) == most
    # Translations have drafts of their transcripts.
    assert passes(is_translation=torch.tensor([True, True, True])) == most
    model.generate(**inputs, max_new_tokens=8, num_beams=2)
    with pytest.raises(ValueError, match="`num_beams` must be 1"):
        model.generate(**inputs, use_draft=True, num_beams=2)


def test_a_draft_that_is_wrong_throughout_is_cut(parts, recordings):
    model, processor = compose(parts, "conv")
    inputs = processor.apply_transcription_request(recordings)
    greedy = batch_greedily(model, inputs, max_new_tokens=20)
    unused = next(token for token in range(3, 99) if token not in greedy)
    lengths = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    drafts = [torch.full((19,), unused)] * 3
    assert torch.equal(model.generate(**inputs, max_new_tokens=20, draft_ids=drafts), greedy)
    # The last accepted token, and the first of the draft.
    assert lengths[4:-1] == [2] * (len(lengths) - 5)
    assert len(lengths) == 20


def test_long_drafts_are_verified_in_parts(parts, recordings, forwards, monkeypatch):
    model, processor = compose(parts, "conv")
    inputs = processor.apply_transcription_request(recordings)
    greedy = batch_greedily(model, inputs, max_new_tokens=12, min_new_tokens=12)
    vocab_size = model.config.text_config.vocab_size
    # Room for four tokens of each row.
    monkeypatch.setattr(draft_decoding, "MAX_LOGITS", 3 * 4 * vocab_size)
    forwards.watch(model)
    found = model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, draft_ids=list(greedy))
    assert torch.equal(found, greedy)
    assert forwards.count == 3


def test_drafts_of_a_batch_return_scores(parts, recordings):
    model, processor = compose(parts, "conv")
    inputs = processor.apply_transcription_request(recordings)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "return_dict_in_generate": True}
    options |= {"output_scores": True, "output_logits": True, "repetition_penalty": 1.3}
    expected = batch_greedily(model, inputs, **options)
    drafts = [expected.sequences[0], edit(expected.sequences[1].tolist(), [(4, "replace")]), torch.tensor([5])]
    found = model.generate(**inputs, **options, draft_ids=drafts)
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("scores", "logits"):
        torch.testing.assert_close(torch.stack(found[name]), torch.stack(expected[name]), atol=1e-4, rtol=1e-4)


def test_a_streamer_with_drafts_takes_one_recording(parts, recordings):
    model, processor = compose(parts, "cif", draft_head=True, expected_tokens_per_second=6.0)
    inputs = processor.apply_transcription_request(recordings)
    with pytest.raises(ValueError, match="`streamer` takes one recording at a time with drafts"):
        model.generate(**inputs, use_draft=True, streamer=TextStreamer(processor.tokenizer))
