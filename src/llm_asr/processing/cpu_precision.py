"""Precision on CPUs. CPUs without instructions for half precision are several times slower than in float32."""

import torch
from torch import nn
from transformers import PreTrainedModel

from .cpu_int8 import quantize_int8


# A dtype is fast if the CPU has any of these capabilities of `torch.cpu.get_capabilities`.
INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "sve_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def is_slow_on_cpu(dtype: torch.dtype) -> bool:
    """
    Whether this CPU has no instructions for a dtype of half precision. `False` if PyTorch cannot determine this.
    """
    if dtype not in INSTRUCTIONS or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return not any(capabilities.get(name) for name in INSTRUCTIONS[dtype])


def slow_dtypes(model: nn.Module) -> list[torch.dtype]:
    """The slow dtypes of weights on the CPU, sorted by name."""
    return sorted({weight.dtype for weight in _slow_weights(model)}, key=str)


def cast_slow_weights(model: nn.Module) -> None:
    """Cast weights on the CPU with a slow dtype to float32, in place."""
    for weight in _slow_weights(model):
        weight.data = weight.data.float()


def loaded_dtype(dtype: str) -> str:
    """The dtype in which `from_pretrained` loads the weights of a model that [`set_dtype`] prepares."""
    return "float32" if dtype == "int8" else dtype


def set_dtype(model: PreTrainedModel, dtype: str) -> None:
    """
    Prepare a model that was loaded in `loaded_dtype(dtype)`.

    Args:
        model (`PreTrainedModel`): The model, which is changed in place.
        dtype (`str`): `"auto"` casts slow weights to float32, and `"int8"` quantises as [`quantize_int8`] does. Others change
            nothing.
    """
    if dtype == "auto":
        cast_slow_weights(model)
    elif dtype == "int8":
        quantize_int8(model)


def _slow_weights(model: nn.Module) -> list[torch.Tensor]:
    weights = [*model.parameters(), *model.buffers()]
    return [weight for weight in weights if weight.device.type == "cpu" and is_slow_on_cpu(weight.dtype)]


__all__ = ["cast_slow_weights", "is_slow_on_cpu", "loaded_dtype", "set_dtype", "slow_dtypes"]
