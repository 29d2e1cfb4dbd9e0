"""Loads the language model, and no other part, in 8 or 4 bits."""

import copy
import re
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin


# Of models with and without a head. The projector is trained, and speech encoders and heads lose more than they save.
UNQUANTIZED = ["audio_tower", "projector", "model.audio_tower", "model.projector", "draft_head", "lm_head"]


def quantize_language_model_alone(
    quantization_config: QuantizationConfigMixin | dict, layer_prefix: str | None = None
) -> QuantizationConfigMixin:
    """
    Copy a quantisation configuration, so that it quantises only the layers of the language model.

    Args:
        quantization_config (`QuantizationConfigMixin` or `dict`):
            As in Transformers, such as [`BitsAndBytesConfig`] or [`TorchAoConfig`]. Modules that it leaves out already stay
            left out.
        layer_prefix (`str`, *optional*):
            What the names of those modules begin with where `model.language_model` is meant: for the configuration of a
            language model on its own.

    Raises:
        `ValueError`: If this way of quantising cannot leave modules out.
    """
    config: QuantizationConfigMixin = copy.deepcopy(
        AutoQuantizationConfig.from_dict(quantization_config)
        if isinstance(quantization_config, dict)
        else quantization_config
    )
    for option in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(config, option):
            break
    else:
        raise ValueError(
            f"`quantization_config` is a {type(config).__name__}, which cannot leave the speech encoder out; use "
            "`BitsAndBytesConfig` or `TorchAoConfig`."
        )
    left_out = getattr(config, option) or []
    if layer_prefix is not None:
        left_out = [re.sub(rf"^{re.escape(layer_prefix)}\.", "model.language_model.", name) for name in left_out]
    setattr(config, option, list(dict.fromkeys([*left_out, *UNQUANTIZED])))
    return config


def adopt_quantization(model: PreTrainedModel, text_model: PreTrainedModel) -> None:
    """
    Mark `model`, which is composed from a quantised `text_model`, as a model that was loaded quantised.

    Saving, loading, the `Trainer` and PEFT read these marks. If `text_model` is not quantised, nothing changes.

    Raises:
        `ValueError`: If its way of quantising cannot leave modules out.
    """
    quantizer = getattr(text_model, "hf_quantizer", None)
    if quantizer is None:
        return
    quantizer.quantization_config = quantize_language_model_alone(
        quantizer.quantization_config, text_model.base_model_prefix
    )
    quantized: Any = model
    quantized.hf_quantizer = quantizer
    quantized.is_quantized = True
    quantized.quantization_method = quantizer.quantization_config.quant_method
    quantizer.postprocess_model(quantized)
    # A checkpoint whose language model alone says so would be taken for quantised as a whole.
    del quantized.config.text_config.quantization_config
    # Quantised weights must be on the accelerator.
    quantized.to(text_model.device)
