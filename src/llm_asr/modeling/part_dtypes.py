"""The dtype of each part of a model: the speech encoder, the projector and the language model may all differ."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from safetensors import safe_open
from torch import nn
from transformers.configuration_utils import PreTrainedConfig


# Sub-configuration of the part that a module of the model belongs to. The draft head is trained with the projector, and
# the language modelling head is one of the language model.
CONFIG_OF_MODULE = {
    "audio_tower": "audio_config",
    "projector": "projector_config",
    "draft_head": "projector_config",
    "language_model": "text_config",
    "lm_head": "text_config",
}
SUB_CONFIGS = ("audio_config", "projector_config", "text_config")

# Names of floating point dtypes in safetensors files. Quantised weights have others.
SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HALF_DTYPES = (torch.float16, torch.bfloat16)

PartDtypes = dict[str, torch.dtype]


def find_part(name: str) -> str | None:
    """Return the name of the sub-configuration of the part that has the parameter or buffer `name`, or `None`."""
    return next((CONFIG_OF_MODULE[module] for module in name.split(".") if module in CONFIG_OF_MODULE), None)


def count_part_dtypes(tensors: Iterable[tuple[str, torch.dtype, int]]) -> PartDtypes:
    """
    Find the dtype that most numbers of each part have.

    Args:
        tensors (`Iterable`): Name, dtype and number of elements of each tensor.

    Returns:
        `dict[str, torch.dtype]`: Dtypes by sub-configuration, for the parts that have floating point tensors.
    """
    counts: dict[str, Counter] = {}
    for name, dtype, size in tensors:
        part = find_part(name)
        if part is not None and dtype.is_floating_point:
            counts.setdefault(part, Counter())[dtype] += size
    return {part: count.most_common(1)[0][0] for part, count in counts.items()}


def read_part_dtypes(paths: Mapping[str, str]) -> PartDtypes:
    """Read the headers of the safetensors files among `paths` (paths by file name); see [`count_part_dtypes`]."""
    return count_part_dtypes(_read_headers(path for path in paths.values() if path.endswith(".safetensors")))


def _read_headers(paths: Iterable[str]) -> Iterator[tuple[str, torch.dtype, int]]:
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a file is not iterable)
                header = file.get_slice(name)
                if header.get_dtype() in SAFETENSORS_DTYPES:
                    yield name, SAFETENSORS_DTYPES[header.get_dtype()], torch.Size(header.get_shape()).numel()


def resolve_part_dtypes(dtype: str | torch.dtype | Mapping | None, saved: PartDtypes) -> PartDtypes:
    """
    Choose the dtype in which each part is loaded.

    Args:
        dtype (`str`, `torch.dtype` or `Mapping`, *optional*):
            As in `from_pretrained`: one dtype for all parts; a mapping from sub-configurations to dtypes, in which `""` is
            for the parts that it does not name; or `None` or `"auto"` for the dtypes that the parts were saved in. Parts
            that a mapping without `""` does not name keep theirs, too.
        saved (`dict[str, torch.dtype]`): Dtypes of the checkpoint, by sub-configuration.

    Returns:
        `dict[str, torch.dtype]`: By sub-configuration.

    Raises:
        `ValueError`: If `dtype` is not a floating point dtype, or a mapping names something else than a part.
    """
    if dtype is None or dtype == "auto":
        return dict(saved)
    if not isinstance(dtype, Mapping):
        return dict.fromkeys(SUB_CONFIGS, _as_dtype(dtype))
    unknown = sorted(set(dtype) - {*SUB_CONFIGS, ""})
    if unknown:
        raise ValueError(f"`dtype` has the keys {unknown}; a mapping may have {list(SUB_CONFIGS)} and ''.")
    asked = {part: _as_dtype(value) for part, value in dtype.items() if value != "auto"}
    others = dict.fromkeys(SUB_CONFIGS, asked.pop("")) if "" in asked else saved
    return {**others, **asked}


def _as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`dtype` must be a floating point dtype, its name or 'auto', got {dtype!r}.")
    return found


@contextmanager
def default_dtype(dtype: str | torch.dtype | None) -> Iterator[None]:
    """Create parameters in `dtype`. If it is `None`, PyTorch's default dtype is kept."""
    before = torch.get_default_dtype()
    found = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    torch.set_default_dtype(found or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def note_part_dtypes(config: PreTrainedConfig, model: nn.Module) -> None:
    """Write the dtype that each part of `model` has into its sub-configuration."""
    tensors = ((name, tensor.dtype, tensor.numel()) for name, tensor in model.named_parameters())
    for part, dtype in count_part_dtypes(tensors).items():
        getattr(config, part).dtype = dtype
