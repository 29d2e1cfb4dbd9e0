"""A recording gives the same tokens alone and in any batch."""

import numpy as np
import pytest
import torch
from tiny_models import compose, save_tiny_whisper

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES


SECONDS = np.linspace(0.3, 28, 16)


@pytest.fixture(scope="module")
def recordings():
    """Sixteen recordings of 0.3 to 28 s. Their tones change, so that their frames differ."""
    generator = np.random.default_rng(0)
    waveforms = []
    for seconds in SECONDS:
        pitches = generator.uniform(100, 2000, size=int(seconds * 4) + 1).repeat(4000)[: int(seconds * 16000)]
        tone = np.sin(2 * np.pi * np.cumsum(pitches) / 16000)
        waveforms.append((0.3 * tone + 0.02 * generator.standard_normal(len(tone))).astype("float32"))
    return waveforms


@pytest.fixture(scope="module")
def window_parts(parts, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("window"))
    # Module fixtures run before the seeding of tests, so set the seed here.
    torch.manual_seed(0)
    save_tiny_whisper(folder, seconds=30)
    return {**parts, "window": folder}


# Encoders and language models see the same of all projectors, so some types are enough for both implementations of attention.
COMBINATIONS = [(projector, attention) for projector in PROJECTOR_TYPES[:4] for attention in ("eager", "sdpa")]
COMBINATIONS += [(projector, "sdpa") for projector in PROJECTOR_TYPES[4:]]


@pytest.mark.slow
@pytest.mark.parametrize(("projector_type", "attn_implementation"), COMBINATIONS)
def test_greedy_output_is_the_same_in_every_batch(
    window_parts, recordings, tmp_path, projector_type, attn_implementation
):
    # Large weights make the transcripts of the recordings differ. Those of attention are small enough to see more than one frame.
    options = {"expected_tokens_per_second": 2.0, "initializer_range": 0.2 if "qformer" in projector_type else 0.5}
    composed, processor = compose(window_parts, projector_type, audio="window", **options)
    composed.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = LlmAsrForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=attn_implementation)
    processor = LlmAsrProcessor.from_pretrained(tmp_path)
    assert model.config.audio_config._attn_implementation == attn_implementation

    def transcribe(audio, use_cache):
        inputs = processor.apply_transcription_request(audio)
        outputs = model.generate(
            **inputs,
            do_sample=False,
            min_new_tokens=8,
            max_new_tokens=8,
            use_cache=use_cache,
            return_dict_in_generate=True,
        )
        return outputs.sequences, outputs.audio_lengths

    alone = [transcribe(recording, use_cache=True) for recording in recordings]
    tokens = torch.cat([sequences for sequences, _ in alone])
    lengths = torch.cat([length for _, length in alone])
    assert len(tokens.unique(dim=0)) > 4, "the recordings must differ for the test to say anything"
    for use_cache in (True, False):
        for order in (range(16), range(15, -1, -1)):
            sequences, audio_lengths = transcribe([recordings[index] for index in order], use_cache)
            assert torch.equal(audio_lengths, lengths[list(order)])
            assert torch.equal(sequences, tokens[list(order)])
