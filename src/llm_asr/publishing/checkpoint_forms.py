"""Saves and loads a model with its processor in one of three forms."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    PROCESSOR_NAME,
    logging,
)
from transformers.utils.hub import extract_commit_hash

from ..atomic_writing import atomic_folder
from ..modeling.adapter_weights import read_adapter_config, wrap_in_adapter
from ..modeling.backbone_references import BACKBONE_DTYPES, BACKBONES
from ..modeling.checkpoint_safety import check_checksums, check_config, find_file, find_weights, hash_files
from ..modeling.configuration_llm_asr import LlmAsrConfig
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration, LlmAsrModel
from ..modeling.slim_checkpoint import (
    ADAPTER_FOLDER,
    ROWS,
    VALUES,
    check_backbone_paths,
    find_backbone,
)
from ..processing.processing_llm_asr import LlmAsrProcessor
from .checksums import write_checksums
from .export import check_is_new
from .frozen_tensors import FrozenTensors


logger = logging.get_logger(__name__)

FORMS = ("full", "slim", "adapter")
COMPARED_BYTES = 2**24


def save_checkpoint(
    model: LlmAsrForConditionalGeneration | PeftModel,
    processor: LlmAsrProcessor,
    folder: str | os.PathLike,
    form: str = "full",
    *,
    backbones: dict[str, str] | None = None,
    backbone_paths: dict[str, str | os.PathLike] | None = None,
    base: str | None = None,
) -> None:
    """
    Save a model with its processor. `from_pretrained(folder)` and `pipeline(model=folder)` load every form:

    - `"full"`: all weights. A `PeftModel` is merged in a copy.
    - `"slim"`: only the tensors and the rows of embeddings that differ bit for bit from the original speech encoder and
      language model, and references to the two originals: id, commit and SHA-256 of every file. The LoRA weights of a
      `PeftModel` are saved unmerged, and merged when the checkpoint is loaded.
    - `"adapter"`: the files that PEFT writes for a `PeftModel`, with its LoRA weights and its projector, and a reference to
      the LLM-ASR checkpoint on which they were trained: id and commit.

    The folder does not exist until all its files are complete.

    Args:
        model ([`LlmAsrForConditionalGeneration`] or `PeftModel`):
            The model. For a `PeftModel`, the active adapter is saved.
        processor ([`LlmAsrProcessor`]):
            The model's processor.
        folder (`str` or `os.PathLike`):
            Folder to write. It must be empty or not exist.
        form (`str`, *optional*, defaults to `"full"`):
            One of `"full"`, `"slim"` and `"adapter"`.
        backbones (`dict[str, str]`, *optional*):
            For `"slim"`: the originals of `"audio_tower"` and `"language_model"`, each `"id"` or `"id@revision"` on the Hub,
            or a local folder. Defaults to the checkpoints from which the model was composed.
        backbone_paths (`dict[str, str]`, *optional*):
            For `"slim"`: local copies of the originals, with the same keys. The reference to a Hub id must then have a commit
            as its revision.
        base (`str`, *optional*):
            For `"adapter"`: the checkpoint on which the adapter was trained, `"id"` or `"id@revision"` on the Hub, or a local
            folder. Defaults to the checkpoint from which the model was loaded.

    Raises:
        `ValueError`: If `folder` is not empty, or the model cannot be saved in this form. Nothing is written then.
        `OSError`: If a referenced checkpoint cannot be found.

    Example:

    ```python
    >>> save_checkpoint(model, processor, "slim", form="slim")
    >>> model = LlmAsrForConditionalGeneration.from_pretrained("slim")
    ```"""
    if form not in FORMS:
        raise ValueError(f"`form` must be one of {list(FORMS)}, got {form!r}.")
    for name, value, place in (
        ("backbones", backbones, "slim"),
        ("backbone_paths", backbone_paths, "slim"),
        ("base", base, "adapter"),
    ):
        if value is not None and form != place:
            raise ValueError(f"`{name}` is for `form={place!r}`, but `form` is {form!r}; leave it out.")
    folder = Path(folder)
    check_is_new(folder)
    _check_adapters(model, form)
    references, folders = _find_backbones(model, backbones, backbone_paths) if form == "slim" else ({}, {})
    pinned = _find_base(model, base) if form == "adapter" and isinstance(model, PeftModel) else None
    with atomic_folder(folder) as partial:
        if form == "slim":
            _save_slim(model, partial, references, folders)
        elif pinned is not None and isinstance(model, PeftModel):
            _save_adapter(model, partial, *pinned)
        else:
            merged = copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model
            merged.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_checksums(partial)


def find_form(folder: str | os.PathLike) -> str:
    """
    The form of the checkpoint in a local folder: `"full"`, `"slim"` or `"adapter"`.

    Raises:
        `ValueError`: If there is no LLM-ASR checkpoint in `folder`.
    """
    if Path(folder, ADAPTER_CONFIG_NAME).is_file():
        return "adapter"
    path = Path(folder, CONFIG_NAME)
    if not path.is_file():
        raise ValueError(f"`folder` {str(folder)!r} has neither {CONFIG_NAME} nor {ADAPTER_CONFIG_NAME}.")
    settings = json.loads(path.read_text(encoding="utf-8"))
    check_config(settings, LlmAsrConfig.model_type, CLASS_NAMES, folder)
    return "full" if settings.get("backbones") is None else "slim"


def fetch_checkpoint(name_or_path: str | os.PathLike, revision: str | None = None) -> Path:
    """Return a local folder unchanged, or download all files of a Hub repository and return their folder."""
    folder = Path(name_or_path)
    return folder if folder.is_dir() else Path(snapshot_download(str(name_or_path), revision=revision))


def load_checkpoint(
    folder: str | os.PathLike, dtype: str | torch.dtype = "auto"
) -> tuple[LlmAsrForConditionalGeneration | PeftModel, LlmAsrProcessor]:
    """
    Load a checkpoint of any form with its processor, in order to save it in another form or to export it.

    Args:
        folder (`str` or `os.PathLike`): Local folder.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): Dtype of the weights. `"auto"` means the dtype in
            which they were saved.

    Returns:
        `tuple`: Model and processor. For an adapter, the model is a `PeftModel` of its base, and the processor is the base's
        unless the adapter has its own.

    Raises:
        `ValueError`: If there is no LLM-ASR checkpoint in `folder`, or the checkpoint is damaged.
        `OSError`: If a referenced checkpoint cannot be found.
    """
    if find_form(folder) != "adapter":
        model = LlmAsrForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        return model, LlmAsrProcessor.from_pretrained(folder)
    settings = read_adapter_config(folder)
    base = (settings.base_model_name_or_path, {"revision": settings.revision} if settings.revision else {})
    model = LlmAsrForConditionalGeneration.from_pretrained(base[0], dtype=dtype, **base[1])
    if Path(folder, PROCESSOR_NAME).is_file():
        processor = LlmAsrProcessor.from_pretrained(folder)
    else:
        processor = LlmAsrProcessor.from_pretrained(base[0], **base[1])
    weights = find_weights(folder, ADAPTER_SAFE_WEIGHTS_NAME)
    check_checksums(folder, weights)
    return wrap_in_adapter(model, folder, weights), processor


CLASS_NAMES = {LlmAsrModel.__name__, LlmAsrForConditionalGeneration.__name__}


def _check_adapters(model: PreTrainedModel | PeftModel, form: str) -> None:
    if not isinstance(model, PeftModel):
        if form == "adapter":
            raise ValueError('`model` is not a `PeftModel`, so there is no adapter to save; use `form="slim"`.')
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise ValueError("`model` has adapters loaded into it; pass a `PeftModel`, or merge them.")
    else:
        if len(model.active_adapters) != 1:
            raise ValueError(
                f"`model` has the active adapters {model.active_adapters}; choose one with `set_adapter`."
            )
        if not isinstance(model.base_model, BaseTuner):
            raise ValueError(f"`model` has a {model.active_peft_config.peft_type} adapter, which cannot be merged.")
        if any(isinstance(module, BaseTunerLayer) and module.merged for module in model.modules()):
            raise ValueError(
                "`model` has merged adapters; call `unmerge_adapter`, or `merge_and_unload` and pass the result."
            )
    if form != "adapter":
        if getattr(model, "hf_quantizer", None) is not None:
            raise ValueError(
                "`model` is quantized; load it without `quantization_config`, and load its adapter, if any, into that model."
            )
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("`model` has weights on disk or on other devices; load it without `device_map`.")


def _find_backbones(
    model: PreTrainedModel | PeftModel, backbones: dict | None, backbone_paths: dict | None
) -> tuple[dict[str, dict], dict[str, str]]:
    """The references of a slim checkpoint to its frozen parts, and the local folder of each part."""
    unknown = sorted(set(backbones or {}) - set(BACKBONES))
    if unknown:
        raise ValueError(f"`backbones` has {unknown}; its keys are among {list(BACKBONES)}.")
    paths = check_backbone_paths(backbone_paths)
    bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = {"audio_tower": bare.model.audio_tower, "language_model": bare.model.language_model}
    configs = {"audio_tower": bare.config.audio_config, "language_model": bare.config.text_config}
    references, folders = {}, {}
    for part in BACKBONES:
        if backbones is not None and part in backbones:
            name, revision = _split(backbones[part])
        elif bare.config.backbones is not None:
            name, revision = (bare.config.backbones[part][field] for field in ("name_or_path", "revision"))
        else:
            name, revision = configs[part].name_or_path, None
        if not name:
            raise ValueError(
                f'`model` does not record the origin of its {part}; pass `backbones={{"{part}": "id@revision"}}`.'
            )
        dtype = str(modules[part].dtype).removeprefix("torch.")
        if dtype not in BACKBONE_DTYPES:
            raise ValueError(f"The {part} of `model` is in {dtype}; cast it to one of {list(BACKBONE_DTYPES)}.")
        if part in paths:
            # Reading a local copy does not ask the Hub, so the commit must be given.
            if not os.path.isdir(name) and not _is_commit(revision):
                raise ValueError(
                    f'The commit of `backbone_paths["{part}"]`, a copy of {name!r}, is unknown; pass '
                    f'`backbones={{"{part}": "{name}@<commit>"}}`.'
                )
            files = find_backbone(paths[part])
        else:
            name, revision = _pin(name, revision, part)
            files = find_backbone(name, revision=revision)
        references[part] = {
            "name_or_path": name,
            "revision": revision,
            "dtype": dtype,
            "sha256": hash_files(files),
        }
        folders[part] = os.path.dirname(files[CONFIG_NAME])
    return references, folders


def _split(reference: str) -> tuple[str, str | None]:
    """Split a reference into id and revision. The revision of `"id"` and of a folder is `None`."""
    if os.path.isdir(reference):
        return reference, None
    name, _, revision = reference.partition("@")
    return name, revision or None


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _pin(name_or_path: str, revision: str | None, what: str) -> tuple[str, str | None]:
    """Return the absolute path of a local folder, or a Hub id with the current commit of `revision`."""
    if os.path.isdir(name_or_path):
        return os.path.abspath(name_or_path), None
    commit = extract_commit_hash(find_file(name_or_path, CONFIG_NAME, revision=revision), None)
    if commit is None:
        raise OSError(
            f"The {what} is {name_or_path!r}, but there is no {CONFIG_NAME} of this name in a local folder or on the Hub; "
            "correct the name, or connect to the Hub."
        )
    return name_or_path, commit


def _save_slim(
    model: PreTrainedModel | PeftModel, folder: Path, references: dict[str, dict], folders: dict[str, str]
) -> None:
    bare: Any = model
    if isinstance(model, PeftModel):
        # Copy the modules but share the tensors: `unload` changes only modules.
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        bare = copy.deepcopy(model, tensors).unload()
        _save_factors(model, set(bare.state_dict()), folder / ADAPTER_FOLDER)
    dtypes = {part: reference["dtype"] for part, reference in references.items()}
    frozen = FrozenTensors(bare, folders, dtypes)
    trained = {}
    for name, tensor in bare.state_dict().items():
        if name not in bare.all_tied_weights_keys:
            trained.update(_difference(name, tensor.detach().cpu(), frozen.get(name)))
    for part, reference in references.items():
        saved = sum(tensor.nbytes for name, tensor in trained.items() if name.startswith(f"model.{part}."))
        size = frozen.num_bytes(part)
        if 2 * saved > size:
            logger.warning(
                f"{saved / size:.0%} of the {part} differs from {reference['name_or_path']!r} at revision "
                f"{reference['revision']} and is saved. If the {part} was frozen, `backbones` names the wrong checkpoint."
            )
    config = copy.deepcopy(bare.config)
    config.backbones = references
    config.architectures = [type(bare).__name__]
    config.dtype = str(bare.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    bare.generation_config.save_pretrained(folder)
    save_torch_state_dict(trained, folder, metadata={"format": "pt"})


def _difference(name: str, tensor: torch.Tensor, frozen: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The tensors to save for `tensor`: nothing if it equals `frozen` bit for bit, otherwise its changed rows or all of it."""
    if frozen is None or frozen.dtype != tensor.dtype:
        return {name: tensor.contiguous()}
    # Compare bytes: as numbers, 0.0 would equal -0.0, and NaN would not equal itself.
    differs = _rows_that_differ(_bytes(tensor), _bytes(frozen))
    if not differs.any():
        return {}
    if tensor.dim() < 2 or differs.all():
        return {name: tensor.contiguous()}
    return {f"{name}{ROWS}": differs.nonzero().flatten(), f"{name}{VALUES}": tensor[differs]}


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor as bytes of shape `(num_rows, num_bytes)`."""
    rows = max(len(tensor), 1) if tensor.dim() else 1
    return tensor.contiguous().reshape(rows, -1).view(torch.uint8)


def _rows_that_differ(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """
    A boolean for each row. Rows are compared in blocks to save memory, because an embedding may be a third of a model.
    """
    rows = max(1, COMPARED_BYTES // max(tensor.shape[1], 1))
    blocks = zip(tensor.split(rows), other.split(rows), strict=True)
    return torch.cat([(one != another).any(-1) for one, another in blocks])


def _save_factors(model: PeftModel, others: set[str], folder: Path) -> None:
    """Save the LoRA weights of a model. `others` names the tensors of fully trained modules, which are not saved here."""
    folder.mkdir()
    config = copy.deepcopy(model.active_peft_config)
    config.inference_mode = True
    config.modules_to_save = None
    config.base_model_name_or_path = config.revision = None
    # Some initialisations (PiSSA, OLoRA) change base weights. The changed weights are saved, so they must not change again.
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True
    config.save_pretrained(folder)
    factors = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    factors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in factors.items()
        if name.removeprefix("base_model.model.") not in others
    }
    save_file(factors, folder / ADAPTER_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


def _find_base(model: PeftModel, base: str | None) -> tuple[str, str | None]:
    """Id and commit, or folder, of the LLM-ASR checkpoint on which an adapter was trained."""
    if base is None:
        loaded: Any = model.get_base_model()
        # `_commit_hash` is the loaded commit of a checkpoint from the Hub.
        name, revision = loaded.name_or_path, vars(loaded.config).get("_commit_hash")
    else:
        name, revision = _split(base)
    if not name:
        raise ValueError(
            "`model` was not loaded from a checkpoint, so its adapter has no base to refer to. Save the model below the "
            'adapter, load it and train on it, or use `form="slim"`.'
        )
    name, revision = _pin(name, revision, "base of the adapter")
    config = find_file(name, CONFIG_NAME, revision=revision)
    if config is None:
        raise OSError(f"The base of the adapter, {name!r}, has no {CONFIG_NAME}; pass another `base`.")
    check_config(json.loads(Path(config).read_text(encoding="utf-8")), LlmAsrConfig.model_type, CLASS_NAMES, name)
    return name, revision


def _save_adapter(model: PeftModel, folder: Path, base: str, revision: str | None) -> None:
    name = model.active_adapter
    # The base has the embeddings. PEFT's default looks for the base on the Hub to decide whether to save them.
    model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    if name != "default":
        for path in (folder / name).iterdir():
            path.replace(folder / path.name)
        (folder / name).rmdir()
    path = folder / ADAPTER_CONFIG_NAME
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.update(base_model_name_or_path=base, revision=revision)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["FORMS", "fetch_checkpoint", "find_form", "load_checkpoint", "save_checkpoint"]
