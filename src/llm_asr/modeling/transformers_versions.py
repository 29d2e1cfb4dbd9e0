"""Differences between the supported versions of Transformers, each with the version from which it can go."""

from dataclasses import fields

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast


# Transformers 5.24 renamed `past_key_values` in outputs and arguments. Goes when 5.24 is the oldest supported version.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:
    # Goes when 5.20 is the oldest supported version: there, `sub_configs_defaults` says how to build sub-configurations.
    SubConfigSpec = None  # type: ignore[assignment, misc]

try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:
    # Goes when 5.21 is the oldest supported version.
    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """Keep the last positions, all if their number is 0, or the positions in a tensor of one dimension."""
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return hidden_states[:, positions, :]


__all__ = ["CACHE_NAME", "SubConfigSpec", "slice_logits_to_keep"]
