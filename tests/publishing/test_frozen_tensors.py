"""Reading tensors of frozen parts from the parts' files."""

import pytest
import torch
from tiny_models import compose

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.modeling.slim_checkpoint import compose_backbones
from llm_asr.publishing.frozen_tensors import FrozenTensors


@pytest.mark.parametrize("audio", ["whisper", "wav2vec2-bert", "parakeet"])
@pytest.mark.parametrize("text", ["qwen2", "qwen2-tied", "llama"])
def test_each_tensor_can_be_read_from_the_files(parts, audio, text):
    """Composing the parts would need as much memory as the model."""
    model, _ = compose(parts, "conv", audio=audio, text=text)
    folders = {"audio_tower": parts[audio], "language_model": parts[text]}
    dtypes = {"audio_tower": "float16", "language_model": "bfloat16"}
    frozen = FrozenTensors(model, folders, dtypes)
    assert not frozen.loaded
    composed = compose_backbones(LlmAsrForConditionalGeneration, model.config, folders, dtypes)
    names = {name for name in model.state_dict() if frozen.get(name) is not None}
    assert names == set(composed)
    for name, tensor in composed.items():
        assert frozen.get(name).dtype == tensor.dtype, name
        assert torch.equal(frozen.get(name), tensor), name
    assert frozen.get("model.projector.mlp.0.weight") is None
