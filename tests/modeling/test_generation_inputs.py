"""Arguments, names and shapes of `generate` that users know from other audio language models."""

import pytest
import torch
from tiny_models import compose
from transformers import DynamicCache, TextStreamer
from transformers.generation import LogitsProcessor, LogitsProcessorList


OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6}


@pytest.fixture(params=["conv", "cif"])
def model_and_processor(request, parts):
    draft_head = {"draft_head": True} if request.param == "cif" else {}
    return compose(parts, request.param, **draft_head)


@pytest.fixture
def expanded(model_and_processor, recordings):
    """Prompts with as many audio tokens as embeddings, padded on the left, as for other audio language models."""
    model, processor = model_and_processor
    processor.tokenizer.padding_side = "left"
    features = processor(audio=recordings)
    lengths = model.get_audio_features(**features).audio_lengths.tolist()
    token = processor.audio_token
    prompts = processor.apply_transcription_request(recordings, tokenize=False)
    texts = [prompt.replace(token, length * token) for prompt, length in zip(prompts, lengths, strict=True)]
    return {**features, **processor.tokenize_requests(texts)}


def test_prompts_may_be_positional(model_and_processor, expanded):
    model, _ = model_and_processor
    expected = model.generate(**expanded, **OPTIONS)
    input_ids = expanded.pop("input_ids")
    assert torch.equal(model.generate(input_ids, **expanded, **OPTIONS), expected)
    assert torch.equal(expected[:, : input_ids.shape[1]], input_ids)


def test_features_may_be_positional(model_and_processor, recordings):
    """Transformers' speech recognition pipeline passes features under the name of the main input."""
    model, processor = model_and_processor
    features = processor(audio=recordings)
    expected = model.generate(**features, **OPTIONS)
    mask = features["input_features_mask"]
    for name in ("inputs", "input_ids"):
        found = model.generate(**{name: features["input_features"]}, attention_mask=mask, **OPTIONS)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["input_ids", "input_features"])
def test_an_input_that_is_given_twice_is_refused(model_and_processor, recordings, name):
    model, processor = model_and_processor
    inputs = processor.apply_transcription_request(recordings)
    with pytest.raises(ValueError, match="`inputs` repeats"):
        model.generate(inputs[name], **inputs)


def test_the_same_tokens_without_a_cache(model_and_processor, expanded):
    model, _ = model_and_processor
    expected = model.generate(**expanded, **OPTIONS)
    assert torch.equal(model.generate(**expanded, **OPTIONS, use_cache=False), expected)


def test_the_same_tokens_with_a_prefill_in_pieces(model_and_processor, expanded):
    """The pieces are cut inside a recording."""
    model, _ = model_and_processor
    expected = model.generate(**expanded, **OPTIONS)
    assert torch.equal(model.generate(**expanded, **OPTIONS, prefill_chunk_size=7), expected)


def test_generation_continues_from_a_cache(model_and_processor, expanded):
    model, _ = model_and_processor
    expected = model.generate(**expanded, max_new_tokens=6, min_new_tokens=6)
    cache = DynamicCache(config=model.config.text_config)
    first = model.generate(**expanded, max_new_tokens=3, min_new_tokens=3, past_key_values=cache)
    mask = torch.nn.functional.pad(expanded["attention_mask"], (0, 3), value=1)
    found = model.generate(first, attention_mask=mask, past_key_values=cache, max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(found, expected)


def test_embedded_prompts(model_and_processor, expanded):
    model, _ = model_and_processor
    expected = model.generate(**expanded, **OPTIONS)
    input_ids = expanded.pop("input_ids")
    embeds = model.get_input_embeddings()(input_ids)
    both = model.generate(input_ids, inputs_embeds=embeds, **expanded, **OPTIONS)
    assert torch.equal(both, expected)
    alone = model.generate(inputs_embeds=embeds, **expanded, **OPTIONS)
    assert torch.equal(alone, expected[:, input_ids.shape[1] :])


def test_logits_processors_receive_only_new_tokens(model_and_processor, recordings):
    """A prompt that expands to its recording differs from the caller's tokens, so processors must not see it."""
    model, processor = model_and_processor
    lengths = []

    class Watching(LogitsProcessor):
        def __call__(self, input_ids, scores):
            lengths.append(input_ids.shape[1])
            return scores

    inputs = processor.apply_transcription_request(recordings)
    model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, logits_processor=LogitsProcessorList([Watching()]))
    assert lengths == [0, 1, 2]


@pytest.mark.parametrize("use_draft", [False, True])
def test_streamers_receive_the_transcript(parts, recordings, capsys, use_draft):
    model, processor = compose(parts, "cif", draft_head=True)
    inputs = processor.apply_transcription_request(recordings[0])
    tokens = model.generate(**inputs, **OPTIONS, use_draft=False)[0]
    capsys.readouterr()
    streamer = TextStreamer(processor.tokenizer, skip_special_tokens=True)
    model.generate(**inputs, **OPTIONS, streamer=streamer, use_draft=use_draft)
    expected = processor.tokenizer.decode(tokens, skip_special_tokens=True)
    assert capsys.readouterr().out.strip() == expected.strip()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_attentions": True}, "`output_attentions` must be False with `use_draft` or `draft_ids`"),
        ({"output_hidden_states": True}, "`output_hidden_states` must be False with `use_draft` or `draft_ids`"),
        (
            {"cache_implementation": "static"},
            "`cache_implementation` must be 'dynamic' with `use_draft` or `draft_ids`",
        ),
        ({"synced_gpus": True}, "`synced_gpus` must be False with `use_draft` or `draft_ids`"),
    ],
)
def test_options_without_effect_on_drafts_are_refused(parts, recordings, options, message):
    model, processor = compose(parts, "cif", draft_head=True)
    inputs = processor.apply_transcription_request(recordings[0])
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, use_draft=True, return_dict_in_generate=True, **options)


def test_drafts_return_the_scores_of_each_token(parts, recordings):
    model, processor = compose(parts, "cif", draft_head=True)
    inputs = processor.apply_transcription_request(recordings[0])
    options = {**OPTIONS, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = model.generate(**inputs, **options, use_draft=False)
    found = model.generate(**inputs, **options, use_draft=True)
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("scores", "logits"):
        assert len(found[name]) == len(expected[name])
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
