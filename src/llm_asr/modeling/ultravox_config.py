"""Reads the configuration of Ultravox checkpoints, whose class is in their repositories, without running that code."""

from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig


def read_ultravox_config(source: str, **hub_kwargs) -> SimpleNamespace:
    """
    The configuration of an Ultravox checkpoint, with the defaults of its code.

    Args:
        source (`str`): Local folder or Hub id.
        hub_kwargs: Where the files are, as in `from_pretrained`.

    Raises:
        `ValueError`: If the speech encoder attends in blocks, which no encoder here does.
    """
    stored, _ = PreTrainedConfig.get_config_dict(source, **hub_kwargs)
    if stored.get("audio_latency_block_size"):
        raise ValueError(
            f"`source` {source!r} has `audio_latency_block_size={stored['audio_latency_block_size']}`: its encoder attends in blocks "
            "that grow, which has no counterpart here; choose another checkpoint."
        )
    settings: dict[str, Any] = {
        "stack_factor": 8,
        "hidden_size": 4096,
        "projector_act": "swiglu",
        "projector_ln_mid": False,
    }
    settings |= {"audio_model_id": None, "text_model_id": None}
    settings |= {name: stored[name] for name in settings if name in stored}
    for part in ("audio", "text"):
        name = settings[f"{part}_model_id"]
        given = stored.get(f"{part}_config") or {}
        settings[f"{part}_config"] = (
            AutoConfig.for_model(**given) if name is None else AutoConfig.from_pretrained(name)
        )
    return SimpleNamespace(model_type="ultravox", **settings)


__all__ = ["read_ultravox_config"]
