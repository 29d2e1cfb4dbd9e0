"""The tensors of an adapter, which PEFT would leave at their initial values where they are missing."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from .checkpoint_safety import check_json_files, naming_file
from .part_dtypes import count_part_dtypes, find_part
from .weight_checks import check_finite


# Prefix of tensor names in adapter files and in a `PeftModel`. A model with an injected adapter has no prefix.
PREFIX = "base_model.model."


def read_adapter_config(name_or_path: str | os.PathLike, **hub_kwargs):
    """
    What an adapter says of itself.

    Args:
        name_or_path (`str` or `os.PathLike`): Local folder or Hub id.
        hub_kwargs: `revision`, `token`, ... as in `from_pretrained`.

    Returns:
        `PeftConfig`

    Raises:
        `ValueError`: If its `adapter_config.json` is damaged or has a field of a wrong type.
    """
    # Import it only when an adapter is loaded, because the import is slow.
    from peft import PeftConfig

    check_json_files(name_or_path, (ADAPTER_CONFIG_NAME,), **hub_kwargs)
    with naming_file(ADAPTER_CONFIG_NAME, name_or_path):
        config = PeftConfig.from_pretrained(str(name_or_path), **hub_kwargs)
        for name in ("base_model_name_or_path", "revision"):
            value = getattr(config, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"`{name}` must be a string, got {value!r:.60}.")
    return config


def wrap_in_adapter(model: PreTrainedModel, folder: str | os.PathLike, weights: Mapping[str, str]):
    """
    Like `PeftModel.from_pretrained`, but with the checks of [`fill_adapter`].

    Args:
        model (`PreTrainedModel`): What the adapter is for; it is changed.
        folder (`str` or `os.PathLike`): Local folder of the adapter.
        weights (`Mapping[str, str]`): Its weight files, from [`find_weights`].

    Returns:
        `PeftModel`: In eval mode.
    """
    # Import it only when an adapter is loaded, because the import is slow.
    from peft import get_peft_model

    config = read_adapter_config(folder)
    config.inference_mode = True
    with naming_file(ADAPTER_CONFIG_NAME, folder):
        adapted = get_peft_model(model, config)
    fill_adapter(adapted, adapted.active_adapter, weights, folder)
    return adapted.eval()


def fill_adapter(model: nn.Module, name: str, weights: Mapping[str, str], source: str | os.PathLike) -> None:
    """
    Read the weights of an adapter that has been added to a model. Modules that were trained whole get the dtype that they were
    saved in.

    Args:
        model (`nn.Module`): A `PeftModel`, or a model with the adapter in it.
        name (`str`): Name of the adapter in it.
        weights (`Mapping[str, str]`): Paths of the weight files by their names.
        source (`str` or `os.PathLike`): Where they are from.

    Raises:
        `ValueError`: If the tensors, by name and shape, are not those that the adapter has, or are not finite.
    """
    # Import it only when an adapter is loaded, because the import is slow.
    from peft.functional import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import ModulesToSaveWrapper

    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    prefix = PREFIX if any(key.startswith(PREFIX) for key in expected) else ""
    tensors: dict[str, torch.Tensor] = {}
    for file_name, path in weights.items():
        if file_name.endswith(".safetensors"):
            tensors.update((prefix + key.removeprefix(PREFIX), tensor) for key, tensor in load_file(path).items())
    start = f"The weights of the adapter {str(source)!r} are not those that its {ADAPTER_CONFIG_NAME} says, or not for this base"
    differing = sorted(set(expected) ^ set(tensors))
    if differing:
        raise ValueError(
            f"{start}: {len(differing)} tensors are on one side alone, {differing[0]!r} among them; save it again."
        )
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{start}: {key!r} has the shape {tuple(tensor.shape)} in place of {tuple(expected[key].shape)}; save it again."
            )
    saved = count_part_dtypes(
        (key, tensor.dtype, tensor.numel()) for key, tensor in tensors.items() if "lora_" not in key
    )
    for module_name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and (part := find_part(module_name)) is not None:
            module.modules_to_save[name].to(saved[part])
    set_peft_model_state_dict(model, tensors, name)
    check_finite(model, source)


def has_adapter(model: nn.Module) -> bool:
    """Return whether adapters have been put into a model that is not a `PeftModel`."""
    if not hasattr(model, "peft_config"):
        return False
    # Slow to import, and few need it. Merging leaves the configuration behind.
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def save_adapter(model: nn.Module, folder: str | os.PathLike) -> None:
    """
    Save the adapter in a model, in the files that `PeftModel.save_pretrained` writes.

    Args:
        model (`nn.Module`): A model with an adapter in it, not a `PeftModel`.
        folder (`str` or `os.PathLike`): Folder to write.

    Raises:
        `ValueError`: If several adapters are active.
    """
    # Slow to import, and few need it.
    from peft.functional import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    active = {name for layer in model.modules() if isinstance(layer, BaseTunerLayer) for name in layer.active_adapters}
    if len(active) != 1:
        raise ValueError(f"The model has the active adapters {sorted(active)}; activate the one to save.")
    (name,) = active
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    os.makedirs(folder, exist_ok=True)
    save_file(
        {PREFIX + key: tensor.contiguous().cpu() for key, tensor in tensors.items()},
        os.path.join(folder, ADAPTER_SAFE_WEIGHTS_NAME),
        metadata={"format": "pt"},
    )
    configs: Any = model.peft_config
    configs[name].save_pretrained(folder)


__all__ = ["fill_adapter", "has_adapter", "read_adapter_config", "save_adapter", "wrap_in_adapter"]
