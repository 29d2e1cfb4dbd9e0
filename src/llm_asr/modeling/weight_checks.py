"""Checks of loaded weights: none is missing, all shapes match, and all values are finite."""

import os
from collections.abc import Collection, Mapping

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.fsdp import is_fsdp_enabled
from transformers.utils import CONFIG_NAME


def check_headers(
    model: PreTrainedModel,
    weights: Mapping[str, str],
    source: str | os.PathLike,
    may_mismatch: bool = False,
    may_lack: bool = False,
) -> None:
    """
    Compare a model without weights with the headers of its files, before memory is taken for what they lack.

    Only numbers of elements are compared: a language model may have its weights as other tensors in memory, transposed or in
    one in place of several, but always as many numbers. [`check_complete`] compares the rest once they are read.

    Args:
        model (`PreTrainedModel`): The model, on the meta device.
        weights (`Mapping[str, str]`): Paths of the weight files by name.
        source (`str` or `os.PathLike`): Where they are from.
        may_mismatch (`bool`, *optional*, defaults to `False`): Whether tensors may have other shapes than the model's.
        may_lack (`bool`, *optional*, defaults to `False`): Whether tensors may be missing.

    Raises:
        `ValueError`: If tensors are missing, or have another size.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    found = _read_shapes(weights)
    # Rename weights of the model without a head to the names in the model with a head.
    prefix = f"{model.base_model_prefix}."
    found |= {
        name.removeprefix(prefix): shape for name, shape in found.items() if name.removeprefix(prefix) in expected
    }
    misshapen = {
        (name, tuple(found[name]), tuple(tensor.shape))
        for name, tensor in expected.items()
        if name in found and found[name].numel() != tensor.numel()
    }
    missing = set(expected) - set(found)
    others = {name for name in found if name not in expected and name.removeprefix(prefix) not in expected}
    lacking = sum(expected[name].numel() for name in missing) > sum(found[name].numel() for name in others)
    check_complete(
        {
            "missing_keys": missing if lacking and not may_lack else set(),
            "unexpected_keys": set(),
            "mismatched_keys": set() if may_mismatch else misshapen,
        },
        source,
    )


def check_complete(info: Mapping, source: str | os.PathLike, ignored: tuple[str, ...] = ()) -> None:
    """
    Raise a `ValueError` if the tensors of a checkpoint are not those of its model. Transformers would fill in what is missing
    with random numbers, and leave out what has another name.

    Args:
        info (`Mapping`): What `from_pretrained(..., output_loading_info=True)` tells.
        source (`str` or `os.PathLike`): Where the weights are from.
        ignored (`tuple[str]`): Prefixes of the names that may be in the checkpoint without being the model's.
    """
    if _is_filled_later():
        return
    missing = sorted(info["missing_keys"])
    others = sorted(name for name in info["unexpected_keys"] if not name.startswith(ignored))
    misshapen = sorted(info["mismatched_keys"])
    faults = []
    if missing:
        faults.append(f"lack {len(missing)} tensor(s) that its {CONFIG_NAME} asks for, {missing[0]!r} among them")
    if others:
        faults.append(f"hold {len(others)} tensor(s) that are not the model's, {others[0]!r} among them")
    if misshapen:
        name, found, expected = misshapen[0]
        faults.append(
            f"hold {len(misshapen)} tensor(s) of another shape than its {CONFIG_NAME} says, {name!r} of shape {tuple(found)} in "
            f"place of {tuple(expected)} among them"
        )
    if faults:
        raise ValueError(
            f"The weights of {str(source)!r} {', and '.join(faults)}; fetch the checkpoint again, or save it again."
        )


def check_nothing_missing(missing: Collection[str], source: str | os.PathLike) -> None:
    """[`check_complete`] for the checkpoint of a part, which may hold more than the part: `missing` must be empty."""
    check_complete({"missing_keys": missing, "unexpected_keys": (), "mismatched_keys": ()}, source)


def check_finite(model: nn.Module, source: str | os.PathLike) -> None:
    """Raise a `ValueError` if a weight is NaN or infinite. Weights on the meta device and 8-bit weights are skipped."""
    if _is_filled_later():
        return
    for name, tensor in model.state_dict().items():
        # With tensor parallelism, each device checks its own shard.
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
            continue
        # `aminmax` allocates no tensor of the same size, and returns NaN if any value is NaN.
        if not torch.stack(tensor.aminmax()).isfinite().all():
            raise ValueError(
                f"The tensor {name!r} of {str(source)!r} holds NaN or infinity; fetch the checkpoint again, go back to an earlier "
                "one, or, if you pass `dtype=torch.float16`, whose range is small, pass another."
            )


def _read_shapes(weights: Mapping[str, str]) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}
    for path in weights.values():
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                shapes.update((name, torch.Size(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    return shapes


def _is_filled_later() -> bool:
    """Whether this process has no weights yet: with FSDP, the first process of a machine reads them for the others."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0 and is_fsdp_enabled()


__all__ = ["check_complete", "check_finite", "check_headers", "check_nothing_missing"]
