"""Simulates training, and compares models."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from llm_asr.training.lora import add_lora


TEXTS = ["qwen2", "qwen2-tied"]


def randomize(model, names=("projector", "lora_B")):
    """Change weights at random, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names) and "original_module" not in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def add_trained_lora(model, **options):
    return randomize(add_lora(model, rank=2, dropout=0.0, **options)).eval()


@torch.no_grad()
def outputs(model, processor, recordings):
    inputs = processor.apply_transcription_request(recordings)
    # PyTorch's choice of kernels depends on the mode and on gradients.
    model.eval().requires_grad_(False)
    return model(**inputs).logits, model.generate(**inputs, max_new_tokens=8)


def check_same(model, other, processor, recordings):
    for one, two in zip(*(outputs(each, processor, recordings) for each in (model, other)), strict=True):
        # Rounding in kernels depends on the memory alignment of weights. Tokens must be equal.
        torch.testing.assert_close(one, two)


def check_same_weights(model, other):
    tensors, others = model.state_dict(), other.state_dict()
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name
    buffers = dict(other.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def own_tensors(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in Path(folder).glob("*.safetensors") for name, tensor in load_file(path).items()}
