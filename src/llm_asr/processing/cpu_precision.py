"""Half precision on CPUs. CPUs without instructions for it are several times slower than in float32."""

import torch
from torch import nn


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


def _slow_weights(model: nn.Module) -> list[torch.Tensor]:
    weights = [*model.parameters(), *model.buffers()]
    return [weight for weight in weights if weight.device.type == "cpu" and is_slow_on_cpu(weight.dtype)]


__all__ = ["cast_slow_weights", "is_slow_on_cpu", "slow_dtypes"]
