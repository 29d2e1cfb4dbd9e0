"""Composes a model from a checkpoint that has only the trained weights and names the frozen pretrained parts."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME

from .adapter_weights import wrap_in_adapter
from .backbone_references import BACKBONES
from .checkpoint_safety import check_checksums, check_digests, find_file, find_weights
from .configuration_llm_asr import LlmAsrConfig
from .language_model_head import take_language_model
from .speech_encoders import load_audio_tower
from .weight_checks import check_nothing_missing


# Factors that are not merged yet lie in a folder of their own: beside `config.json` they would make an adapter of it all.
ADAPTER_FOLDER = "adapter"
# A tensor of which few rows differ is kept as their numbers and what they hold; no module has a colon in its name.
ROWS, VALUES = ":rows", ":values"
# Options of `from_pretrained` that configurations accept, too.
CONFIG_OPTIONS = (
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "force_download",
    "subfolder",
    "trust_remote_code",
)


def find_backbone(name_or_path: str, **hub_kwargs) -> dict[str, str]:
    """
    Fetch and check the files of a frozen part's checkpoint that are read; see [`find_weights`].

    Returns:
        `dict[str, str]`: Paths by name; all lie in one folder.

    Raises:
        `OSError`: If it has no configuration or no safetensors weights.
        `ValueError`: If they are not whole, or an adapter lies beside them, which would be loaded too.
    """
    config = find_file(name_or_path, CONFIG_NAME, **hub_kwargs)
    if config is None:
        raise OSError(f"{name_or_path!r} has no {CONFIG_NAME}.")
    paths = {CONFIG_NAME: config, **find_weights(name_or_path, **hub_kwargs)}
    if os.path.exists(os.path.join(os.path.dirname(config), ADAPTER_CONFIG_NAME)):
        raise ValueError(f"{name_or_path!r} has an adapter ({ADAPTER_CONFIG_NAME}); name a checkpoint without.")
    return paths


def check_backbone_paths(backbone_paths: Mapping | None) -> dict[str, str]:
    """Return `backbone_paths`. Raise a `ValueError` if it names an unknown part, or a path that is not a folder."""
    paths = {name: os.fspath(path) for name, path in (backbone_paths or {}).items()}
    unknown = sorted(set(paths) - set(BACKBONES))
    if unknown:
        raise ValueError(f"`backbone_paths` has {unknown}; its keys are among {list(BACKBONES)}.")
    for name, path in paths.items():
        if not os.path.isdir(path):
            raise ValueError(f"`backbone_paths[{name!r}]` is {path!r}, which is not a folder; correct it.")
    return paths


def fetch_backbones(backbones: Mapping[str, Mapping], backbone_paths: Mapping | None, **hub_kwargs) -> dict[str, str]:
    """
    Fetch the frozen parts that a slim checkpoint names, by their pinned revisions, and compare every file with its digest.

    Args:
        backbones (`Mapping`): As in [`LlmAsrConfig`].
        backbone_paths (`Mapping`, *optional*): Local copies to take instead, by part.
        hub_kwargs: `token`, `cache_dir`, ... as in `from_pretrained`.

    Returns:
        `dict[str, str]`: A local folder for each part.

    Raises:
        `OSError`: If a part cannot be found.
        `ValueError`: If one is not what the checkpoint was made from.
    """
    given = check_backbone_paths(backbone_paths)
    folders = {}
    for part, reference in backbones.items():
        name, options = reference["name_or_path"], {**hub_kwargs, "revision": reference["revision"]}
        if part in given:
            name, options = given[part], {}
        elif reference["revision"] is None:
            options = {}
            if not os.path.isdir(name):
                raise OSError(
                    f"The {part} of this checkpoint is the local folder {name!r}, which is not there; pass "
                    f'`backbone_paths={{"{part}": "..."}}` with the folder where it is now.'
                )
        paths = find_backbone(name, **options)
        mend = (
            f"the {part} must be {reference['name_or_path']!r}"
            + (f" at revision {reference['revision']}" if reference["revision"] else "")
            + " as it was when this checkpoint was made: fetch it again, or pass "
            f'`backbone_paths={{"{part}": "..."}}` with a folder that holds it'
        )
        check_digests(paths, reference["sha256"], "this slim checkpoint", mend)
        lacking = sorted(set(reference["sha256"]) - set(paths))
        if lacking:
            raise ValueError(f"{name!r} is read without {lacking[0]}, which this slim checkpoint names; {mend}.")
        folders[part] = os.path.dirname(paths[CONFIG_NAME])
    return folders


def load_parts(
    audio: str, text: str, audio_kwargs: dict, text_kwargs: dict
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Load the pretrained speech encoder, and the pretrained language model with its head."""
    hub_kwargs = {name: value for name, value in audio_kwargs.items() if name in CONFIG_OPTIONS}
    audio_tower = load_audio_tower(audio, AutoConfig.from_pretrained(audio, **hub_kwargs), **audio_kwargs)
    loaded: Any = AutoModelForCausalLM.from_pretrained(text, output_loading_info=True, **text_kwargs)
    text_model, info = loaded
    check_nothing_missing(info["missing_keys"], text)
    return audio_tower, take_language_model(text_model)


@torch.no_grad()
def compose_backbones(
    model_class: type[PreTrainedModel], config: LlmAsrConfig, folders: Mapping[str, str], dtypes: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """
    Read the tensors of a model's frozen parts, by their names in the model.

    Args:
        model_class (`type`): The model's, with a head.
        config ([`LlmAsrConfig`]): The model's.
        folders, dtypes (`Mapping[str, str]`): Local folder and precision of each part.

    Returns:
        `dict[str, torch.Tensor]`: Of the shapes that `config` says: embeddings have as many rows, those that the part does
        not have are zero.
    """
    audio, text = BACKBONES
    options: dict[str, dict] = {
        part: {"dtype": getattr(torch, dtypes[part]), "use_safetensors": True, "trust_remote_code": False}
        for part in BACKBONES
    }
    audio_tower, text_model = load_parts(folders[audio], folders[text], options[audio], options[text])
    shapes = {name: tensor.shape for name, tensor in empty_model(model_class, config).state_dict().items()}
    with torch.device("meta"):
        composed = model_class(config, audio_tower, text_model)
    tensors = {}
    for name, tensor in composed.state_dict().items():
        if tensor.is_meta or name in composed.all_tied_weights_keys or name not in shapes:
            continue
        tensor = fit_rows(tensor, shapes[name])
        if tensor is not None:
            tensors[name] = tensor
    return tensors


def fit_rows(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """Add rows of zeros up to `shape`, or cut rows off. Return `None` if the rows have another shape."""
    if tensor.shape == shape:
        return tensor
    if not tensor.dim() or tensor.shape[1:] != shape[1:]:
        return None
    return torch.cat([tensor[: shape[0]], tensor.new_zeros(max(shape[0] - len(tensor), 0), *shape[1:])])


def empty_model(model_class: type[PreTrainedModel], config: LlmAsrConfig) -> PreTrainedModel:
    """Create a model without weights."""
    with torch.device("meta"):
        return model_class(config)


def load_slim(
    model_class: type[PreTrainedModel],
    config: LlmAsrConfig,
    name_or_path: str | os.PathLike,
    weights: Mapping[str, str],
    backbone_paths: Mapping | None,
    **hub_kwargs,
) -> dict[str, torch.Tensor]:
    """
    Read all tensors of the model of a slim checkpoint.

    Everything is compared with its digest first. Then each frozen part is read once, on the CPU and in the precision that
    it had when the checkpoint was made; what was trained takes its place; and LoRA is merged.

    Args:
        model_class (`type`): The model's, with a head.
        config ([`LlmAsrConfig`]): The model's.
        name_or_path (`str` or `os.PathLike`): Local folder or Hub id of the checkpoint.
        weights (`Mapping[str, str]`): Its own weight files, from [`find_weights`].
        backbone_paths (`Mapping`, *optional*): Local copies of parts.
        hub_kwargs: `revision`, `token`, ... of the checkpoint.

    Raises:
        `OSError`: If a part cannot be found.
        `ValueError`: If the checkpoint or a part is not what it was.
    """
    adapter = _find_adapter(name_or_path, **hub_kwargs)
    own_adapter_weights = (
        {} if adapter is None else {f"{ADAPTER_FOLDER}/{name}": path for name, path in adapter.items()}
    )
    check_checksums(name_or_path, {**weights, **own_adapter_weights}, **hub_kwargs)
    # The revision and the subfolder belong to the checkpoint, not to its parts.
    elsewhere = {name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")}
    backbones = config.backbones or {}
    folders = fetch_backbones(backbones, backbone_paths, **elsewhere)
    dtypes = {part: reference["dtype"] for part, reference in backbones.items()}
    tensors = compose_backbones(model_class, config, folders, dtypes)

    model = empty_model(model_class, config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    own = {}
    for name, path in weights.items():
        if name.endswith(".safetensors"):
            own.update(load_file(path))
    _put_in_place(tensors, own, shapes, str(name_or_path))
    lacking = sorted(set(shapes) - set(tensors) - set(model.all_tied_weights_keys))
    if lacking:
        raise ValueError(
            f"Neither {str(name_or_path)!r} nor the parts that it names hold {lacking[0]!r} and {len(lacking) - 1} others; "
            "save the checkpoint again."
        )
    if adapter is not None:
        tensors = _merge(model, tensors, adapter)
    return tensors


def _find_adapter(name_or_path: str | os.PathLike, subfolder: str = "", **hub_kwargs) -> dict[str, str] | None:
    folder = (Path(subfolder) / ADAPTER_FOLDER).as_posix()
    if find_file(name_or_path, ADAPTER_CONFIG_NAME, subfolder=folder, **hub_kwargs) is None:
        return None
    weights = find_weights(name_or_path, ADAPTER_SAFE_WEIGHTS_NAME, subfolder=folder, **hub_kwargs)
    if set(weights) != {ADAPTER_SAFE_WEIGHTS_NAME}:
        # Otherwise PEFT would look for pickled weights.
        raise OSError(
            f"{folder} of {str(name_or_path)!r} has no {ADAPTER_SAFE_WEIGHTS_NAME}; save the checkpoint again."
        )
    return weights


def _put_in_place(
    tensors: dict[str, torch.Tensor], own: dict[str, torch.Tensor], shapes: Mapping[str, torch.Size], source: str
) -> None:
    """Replace weights of the parts with the weights of a slim checkpoint."""
    for key, value in own.items():
        name = key.removesuffix(ROWS).removesuffix(VALUES)
        if name not in shapes:
            raise ValueError(f"{source} holds {key!r}, which the model does not have; save the checkpoint again.")
        if key == name:
            fits = value.shape == shapes[name]
        else:
            rows, values = own.get(f"{name}{ROWS}"), own.get(f"{name}{VALUES}")
            fits = (
                name in tensors
                and rows is not None
                and values is not None
                and rows.dtype == torch.long
                and values.dtype == tensors[name].dtype
                and values.shape == (len(rows), *shapes[name][1:])
                and bool(((rows >= 0) & (rows < shapes[name][0])).all())
            )
        if not fits:
            raise ValueError(f"{source} holds {key!r}, which does not fit the model; save the checkpoint again.")
        if key == name:
            tensors[name] = value
        elif key.endswith(ROWS):
            tensors[name] = tensors[name].index_copy(0, value, own[f"{name}{VALUES}"])


def _merge(
    model: PreTrainedModel, tensors: dict[str, torch.Tensor], weights: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    folder = os.path.dirname(weights[ADAPTER_SAFE_WEIGHTS_NAME])
    merged = wrap_in_adapter(model, folder, weights).merge_and_unload().state_dict()
    return {name: merged[name] for name in tensors}
