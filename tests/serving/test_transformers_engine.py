"""The engine with Transformers' `generate()`: drafts of the front end are verified in batches."""

import asyncio
from dataclasses import replace

import pytest
import torch
from tiny_models import compose

from llm_asr.publishing.export import export_for_serving
from llm_asr.publishing.front_end import LlmAsrFrontEnd
from llm_asr.serving.engine import Decoding
from llm_asr.serving.transformers_engine import TransformersEngine


async def continue_prompts(folder, prompts, decoding):
    """New tokens, log-probabilities and probabilities of silence, and the passes of the language model."""
    engine = TransformersEngine(
        folder, "float32", torch.device("cpu"), batch_size=len(prompts), max_queued=len(prompts)
    )
    passes = []
    await engine.start()
    engine.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    try:

        async def continue_one(prompt):
            return [found async for found in engine.generate(prompt, decoding)]

        found = await asyncio.gather(*map(continue_one, prompts))
        return [one for (one,) in found], len(passes)
    finally:
        await engine.stop()


@pytest.fixture
def exported(parts, recordings, tmp_path):
    """A folder of an exported model with a draft head, and the prompts of recordings."""
    model, processor = compose(parts, "cif", draft_head=True, text="llama")
    export_for_serving(model, processor, tmp_path / "exported")
    request = processor.apply_transcription_request(recordings)
    prompts = LlmAsrFrontEnd.from_pretrained(tmp_path / "exported/front_end")(**request)
    for prompt, limit in zip(prompts, (8, 12, 10), strict=True):
        prompt.max_new_tokens = limit
    return tmp_path / "exported/language_model", prompts, model, request


def test_the_front_end_gives_the_hidden_states_of_drafts(exported):
    _, prompts, model, request = exported
    audio = model.get_audio_features(request["input_features"], request["input_features_mask"], return_dict=True)
    drafted = model.draft(audio.pooler_output, audio.audio_lengths).argmax(-1)
    found = model.lm_head(torch.cat([prompt.draft_states for prompt in prompts])).argmax(-1)
    assert torch.equal(found, drafted)
    assert [len(prompt.draft_states) for prompt in prompts] == audio.audio_lengths.tolist()


def test_drafts_save_passes_and_change_nothing(exported):
    folder, prompts, model, _ = exported
    greedy = [replace(prompt, draft_states=None) for prompt in prompts]
    decoding = Decoding(temperature=0.0, output_confidence=True)
    expected, most = asyncio.run(continue_prompts(folder, greedy, decoding))
    assert len({len(tokens.ids) for tokens in expected}) > 1
    # Rows of the head, whose product with themselves is the largest. One row has no draft.
    weight = model.lm_head.weight.detach()
    for prompt, tokens in zip(prompts[:2], expected, strict=False):
        assert (weight[tokens.ids] @ weight.T).argmax(-1).tolist() == tokens.ids
        prompt.draft_states = weight[tokens.ids]
    prompts[2].draft_states = None
    found, _ = asyncio.run(continue_prompts(folder, prompts, decoding))
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=1e-4)
    _, passes = asyncio.run(continue_prompts(folder, prompts[:2], decoding))
    assert passes == 1 < most
    # Sampling uses no drafts.
    _, passes = asyncio.run(continue_prompts(folder, prompts[:2], Decoding(temperature=1.0)))
    assert passes > 1
