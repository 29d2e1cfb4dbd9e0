"""Reads Ultravox checkpoints, whose classes are in their repositories, without running that code."""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.generation import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from .checkpoint_safety import find_file, find_weights
from .part_dtypes import default_dtype
from .speech_encoders import build_audio_tower, load_audio_tower
from .ultravox_config import read_ultravox_config
from .weight_checks import check_complete


@dataclass
class SpeechLlmParts:
    """
    The parts of a published speech language model.

    Attributes:
        audio_tower (`PreTrainedModel`): Speech encoder of this package.
        text_model (`PreTrainedModel`): Causal language model.
        projector (`dict[str, torch.Tensor]`): Weights of the projector by the source's names.
        config: Configuration of the source, with the fields that the family reads.
        generation_config (`GenerationConfig`): The source's.
    """

    audio_tower: PreTrainedModel
    text_model: PreTrainedModel
    projector: dict[str, torch.Tensor]
    config: Any
    generation_config: GenerationConfig


def load_ultravox(source: str, hub_kwargs: dict, **kwargs) -> SpeechLlmParts:
    """
    Load an Ultravox checkpoint. It has the weights that were trained; the others are those of the models that its configuration names.

    Args:
        source (`str`): Local folder or Hub id.
        hub_kwargs (`dict`): Where the files are.
        kwargs: `dtype` of all parts, and what further `from_pretrained` takes.

    Raises:
        `ValueError`: If weights are missing or unknown, or adapters were not merged.
    """
    config = read_ultravox_config(source, **hub_kwargs)
    weights: dict[str, torch.Tensor] = {}
    for name, path in find_weights(source, **hub_kwargs).items():
        if name.endswith(".safetensors"):
            weights.update(load_file(path))
    if any("lora_" in name for name in weights):
        raise ValueError(
            f"`source` {source!r} has LoRA weights beside its model; merge them with its own code, and save it."
        )
    parts = {
        part: {name.removeprefix(f"{part}."): one for name, one in weights.items() if name.startswith(f"{part}.")}
        for part in ("audio_tower", "multi_modal_projector", "language_model")
    }
    dtype = kwargs.pop("dtype")
    if dtype == "auto":
        dtype = parts["multi_modal_projector"]["linear_1.weight"].dtype
    elif isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    options = {name: value for name, value in kwargs.items() if name not in hub_kwargs}
    with default_dtype(dtype):
        if config.audio_model_id is None:
            audio_tower = build_audio_tower(config.audio_config)
        else:
            audio_tower = load_audio_tower(config.audio_model_id, config.audio_config, dtype=dtype, **options)
        if config.text_model_id is None:
            text_model = AutoModelForCausalLM.from_config(config.text_config)
        else:
            text_model = AutoModelForCausalLM.from_pretrained(config.text_model_id, dtype=dtype, **options)
    _put_weights(audio_tower, parts["audio_tower"], config.audio_model_id is None, source)
    _put_weights(text_model, parts["language_model"], config.text_model_id is None, source)
    projector = {name: one.to(dtype) for name, one in parts["multi_modal_projector"].items()}
    has_settings = find_file(source, GENERATION_CONFIG_NAME, **hub_kwargs) is not None
    settings = GenerationConfig.from_pretrained(source, **hub_kwargs) if has_settings else text_model.generation_config
    return SpeechLlmParts(audio_tower, text_model, projector, config, settings)


def _put_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor], is_whole: bool, source: str) -> None:
    """Put weights of a source into a part of it. `is_whole` says that they are all weights of the part."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    model.tie_weights()
    if model.config.tie_word_embeddings:
        # The head of a language model is its embedding then.
        missing = [name for name in missing if name != "lm_head.weight"]
    keys = {"missing_keys": missing if is_whole else (), "unexpected_keys": unexpected, "mismatched_keys": ()}
    check_complete(keys, source)


__all__ = ["SpeechLlmParts", "load_ultravox"]
