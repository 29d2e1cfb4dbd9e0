"""Weights of 8 bits for transcription on CPUs."""

import warnings

import torch
from torch import nn
from transformers import PreTrainedModel


# The projector, the draft head and the language model's head are small or lose more than they save.
QUANTIZED = ("audio_tower", "language_model")


def quantize_int8(model: PreTrainedModel) -> None:
    """
    Quantise the linear layers of the speech encoder and of the language model to 8 bits, in place, for use on a CPU.

    Weights have a scale for each output, and inputs are quantised by their range when they arrive (dynamic quantisation of
    PyTorch). Everything else becomes float32. The model can then be used, but not trained or saved.

    Args:
        model (`PreTrainedModel`): An LLM-ASR model, its front end, or a language model, on the CPU. LoRA must be merged.

    Raises:
        `ValueError`: If the model is not on the CPU, has adapters, or is quantised already.
        `ImportError`: If this PyTorch has no dynamic quantisation.

    Example:

    ```python
    >>> transcriber = pipeline("automatic-speech-recognition", model="my-model")
    >>> quantize_int8(transcriber.model)
    ```
    """
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError as error:
        raise ImportError(
            f"Weights of 8 bits need `torch.ao.quantization`, which PyTorch {torch.__version__} does not have; use float32."
        ) from error
    devices = sorted({parameter.device.type for parameter in model.parameters()})
    if devices != ["cpu"]:
        raise ValueError(f"`model` must be on the CPU for weights of 8 bits, and it is on {devices}; move it there.")
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("`model` has adapters, which cannot be quantised; call `model.merge_and_unload()` before.")
    nn.Module.float(model).eval()
    parts = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in QUANTIZED]
    parts = parts or [model.get_decoder()]
    if not any(type(layer) is nn.Linear for part in parts for layer in part.modules()):
        raise ValueError("`model` has no linear layers of floating point numbers; is it quantised already?")
    for part in parts:
        with warnings.catch_warnings():
            # PyTorch announces that torchao will replace this function. Its layers are slower than float32 for the few rows of a
            # decoding step, so they cannot yet (docs/benchmarks.md, "Weights of 8 bits").
            warnings.simplefilter("ignore")
            quantize_dynamic(part, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)


__all__ = ["quantize_int8"]
