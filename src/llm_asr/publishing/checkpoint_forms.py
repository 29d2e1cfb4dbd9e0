"""A model and its processor as a folder, in one of three forms."""

import copy
import json
import os
import tempfile
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
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

from ..modeling.checkpoint_safety import CHECKSUMS_NAME, check_config, find_file, hash_files
from ..modeling.configuration_llm_asr import BACKBONE_DTYPES, BACKBONES, LlmAsrConfig
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration, LlmAsrModel
from ..modeling.slim_checkpoint import (
    ADAPTER_FOLDER,
    ROWS,
    VALUES,
    check_backbone_paths,
    compose_backbones,
    find_backbone,
)
from ..processing.processing_llm_asr import LlmAsrProcessor
from .export import check_is_new


logger = logging.get_logger(__name__)

FORMS = ("full", "slim", "adapter")


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
    Write a model and its processor, for `from_pretrained(folder)` and `pipeline(model=folder)` in any form:

    - `"full"`: all weights; a `PeftModel` is merged in a copy.
    - `"slim"`: the tensors, and the rows of embeddings, that differ bit for bit from those of the speech encoder and the
      language model that the model was composed from, and references to those two: id, commit and SHA-256 of every file. The
      LoRA of a `PeftModel` is kept as it is, and merged when the checkpoint is loaded.
    - `"adapter"`: what PEFT writes for a `PeftModel`, which is its LoRA and projector, with a reference to the LLM-ASR
      checkpoint that they were trained on: id and commit.

    The folder appears when it is complete.

    Args:
        model ([`LlmAsrForConditionalGeneration`] or `PeftModel`):
            The model. Of a `PeftModel`, the active adapter is saved.
        processor ([`LlmAsrProcessor`]):
            Its processor.
        folder (`str` or `os.PathLike`):
            Where to write; must not exist, or be empty.
        form (`str`, *optional*, defaults to `"full"`):
            One of `"full"`, `"slim"` and `"adapter"`.
        backbones (`dict[str, str]`, *optional*):
            For `"slim"`: what to refer to, by `"audio_tower"` and `"language_model"`: `"id"` or `"id@revision"` on the Hub,
            or a local folder. Defaults to what the model was composed from.
        backbone_paths (`dict[str, str]`, *optional*):
            For `"slim"`: local copies to read them from, by the same keys. The reference to a Hub id must then have a commit
            for its revision.
        base (`str`, *optional*):
            For `"adapter"`: the checkpoint it was trained on, `"id"` or `"id@revision"` on the Hub, or a local folder.
            Defaults to what the model was loaded from.

    Raises:
        `ValueError`: If there is something in `folder`, or the model cannot be saved in this form; nothing is written.
        `OSError`: If a checkpoint that is to be referred to cannot be found.

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
            raise ValueError(f"`{name}` is for `form={place!r}`, and `form` is {form!r}; leave it out.")
    folder = Path(folder)
    check_is_new(folder)
    _check_adapters(model, form)
    if form == "slim":
        reference = _find_backbones(model, backbones, backbone_paths)
    elif form == "adapter":
        reference = _find_base(model, base)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as partial:
        complete = Path(partial, folder.name)
        if form == "full":
            merged = copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else model
            merged.save_pretrained(complete)
        elif form == "slim":
            _save_slim(model, complete, *reference)
        else:
            _save_adapter(model, complete, *reference)
        processor.save_pretrained(complete)
        write_checksums(complete)
        os.replace(complete, folder)


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
    """A local folder, or all files of a repository of the Hub."""
    folder = Path(name_or_path)
    return folder if folder.is_dir() else Path(snapshot_download(str(name_or_path), revision=revision))


def load_checkpoint(
    folder: str | os.PathLike, dtype: str | torch.dtype = "auto"
) -> tuple[LlmAsrForConditionalGeneration | PeftModel, LlmAsrProcessor]:
    """
    Load a checkpoint of any form with its processor: for saving it in another, or exporting it.

    Args:
        folder (`str` or `os.PathLike`): Local folder.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): Of the weights; as saved by default.

    Returns:
        `tuple`: Of an adapter, a `PeftModel` of its base, and the base's processor unless it has one of its own.

    Raises:
        `ValueError`: If there is no LLM-ASR checkpoint in `folder`.
        `OSError`: If what it refers to cannot be found.
    """
    if find_form(folder) != "adapter":
        model = LlmAsrForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        return model, LlmAsrProcessor.from_pretrained(folder)
    settings = PeftConfig.from_pretrained(folder)
    base = (settings.base_model_name_or_path, {"revision": settings.revision} if settings.revision else {})
    model = LlmAsrForConditionalGeneration.from_pretrained(base[0], dtype=dtype, **base[1])
    if Path(folder, PROCESSOR_NAME).is_file():
        processor = LlmAsrProcessor.from_pretrained(folder)
    else:
        processor = LlmAsrProcessor.from_pretrained(base[0], **base[1])
    return PeftModel.from_pretrained(model, folder), processor


CLASS_NAMES = {LlmAsrModel.__name__, LlmAsrForConditionalGeneration.__name__}


def write_checksums(folder: str | os.PathLike) -> None:
    """Write the SHA-256 of every weight file in `folder` into its `SHA256SUMS`, which loading compares them with."""
    folder = Path(folder)
    paths = {
        path.relative_to(folder).as_posix(): str(path)
        for path in sorted(folder.rglob("*.safetensors*"))
        if path.name.endswith((".safetensors", ".safetensors.index.json"))
    }
    lines = [f"{digest}  {name}\n" for name, digest in hash_files(paths).items()]
    (folder / CHECKSUMS_NAME).write_text("".join(lines), encoding="utf-8")


def _check_adapters(model: PreTrainedModel | PeftModel, form: str) -> None:
    if not isinstance(model, PeftModel):
        if form == "adapter":
            raise ValueError('`model` is no `PeftModel`, so that there is no adapter to save; use `form="slim"`.')
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
                "`model` is quantized; load it without `quantization_config`, and its adapter, if any, into that."
            )
        if any(parameter.is_meta for parameter in model.parameters()):
            raise ValueError("`model` has weights on disk or on other devices; load it without `device_map`.")


def _find_backbones(
    model: PreTrainedModel | PeftModel, backbones: dict | None, backbone_paths: dict | None
) -> tuple[dict[str, dict], dict[str, str]]:
    """What a slim checkpoint is to say of its frozen parts, and the folder to read each from."""
    unknown = sorted(set(backbones or {}) - set(BACKBONES))
    if unknown:
        raise ValueError(f"`backbones` has {unknown}; its keys are among {list(BACKBONES)}.")
    paths = check_backbone_paths(backbone_paths)
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = {"audio_tower": model.model.audio_tower, "language_model": model.model.language_model}
    configs = {"audio_tower": model.config.audio_config, "language_model": model.config.text_config}
    references, folders = {}, {}
    for part in BACKBONES:
        if backbones is not None and part in backbones:
            name, revision = _split(backbones[part])
        elif model.config.backbones is not None:
            name, revision = (model.config.backbones[part][field] for field in ("name_or_path", "revision"))
        else:
            name, revision = configs[part].name_or_path, None
        if not name:
            raise ValueError(
                f'`model` does not say where its {part} is from; pass `backbones={{"{part}": "id@revision"}}`.'
            )
        dtype = str(modules[part].dtype).removeprefix("torch.")
        if dtype not in BACKBONE_DTYPES:
            raise ValueError(f"The {part} of `model` is in {dtype}; cast it to one of {list(BACKBONE_DTYPES)}.")
        if part in paths:
            # Nothing is fetched, so that nothing could find the commit.
            if not os.path.isdir(name) and not _is_commit(revision):
                raise ValueError(
                    f'`backbone_paths["{part}"]` is a copy of {name!r} at which commit? Pass `backbones={{"{part}": '
                    f'"{name}@<commit>"}}`.'
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
    """`"id@revision"` or `"id"` or a folder."""
    if os.path.isdir(reference):
        return reference, None
    name, _, revision = reference.partition("@")
    return name, revision or None


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _pin(name_or_path: str, revision: str | None, what: str) -> tuple[str, str | None]:
    """A local folder by its absolute path, a Hub id with the commit that `revision` is now."""
    if os.path.isdir(name_or_path):
        return os.path.abspath(name_or_path), None
    commit = extract_commit_hash(find_file(name_or_path, CONFIG_NAME, revision=revision), None)
    if commit is None:
        raise OSError(
            f"The {what} is {name_or_path!r}, and neither a folder nor the Hub has a {CONFIG_NAME} of it; correct the name, or "
            "connect to the Hub."
        )
    return name_or_path, commit


def _save_slim(
    model: PreTrainedModel | PeftModel, folder: Path, references: dict[str, dict], folders: dict[str, str]
) -> None:
    folder.mkdir()
    if isinstance(model, PeftModel):
        # Only the modules are copied: without its adapters, they hold the same tensors.
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        bare = copy.deepcopy(model, tensors).unload()
        _save_factors(model, set(bare.state_dict()), folder / ADAPTER_FOLDER)
        model = bare
    dtypes = {part: reference["dtype"] for part, reference in references.items()}
    frozen = compose_backbones(type(model), model.config, folders, dtypes)
    trained = {}
    for name, tensor in model.state_dict().items():
        if name not in model.all_tied_weights_keys:
            trained.update(_difference(name, tensor.detach().cpu(), frozen.get(name)))
    for part, reference in references.items():
        size, saved = (
            sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith(f"model.{part}."))
            for tensors in (frozen, trained)
        )
        if 2 * saved > size:
            logger.warning(
                f"{saved / size:.0%} of the {part} is not as in {reference['name_or_path']!r} at revision "
                f"{reference['revision']}, and is saved. If it was frozen, `backbones` must name another one."
            )
    config = copy.deepcopy(model.config)
    config.backbones = references
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_torch_state_dict(trained, folder, metadata={"format": "pt"})


def _difference(name: str, tensor: torch.Tensor, frozen: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What of a tensor is to be kept, bit for bit, where the frozen one is at hand."""
    if frozen is None or frozen.dtype != tensor.dtype:
        return {name: tensor.contiguous()}
    rows = max(len(tensor), 1) if tensor.dim() else 1
    # Compared as bytes: zero has two signs, and no number is equal to what is not a number.
    differs = (_bytes(tensor, rows) != _bytes(frozen, rows)).any(-1)
    if not differs.any():
        return {}
    if tensor.dim() < 2 or differs.all():
        return {name: tensor.contiguous()}
    return {f"{name}{ROWS}": differs.nonzero().flatten(), f"{name}{VALUES}": tensor[differs]}


def _bytes(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor.contiguous().reshape(rows, -1).view(torch.uint8)


def _save_factors(model: PeftModel, others: set[str], folder: Path) -> None:
    """The adapter of a model without the modules that PEFT has trained as they are, whose tensors are `others`."""
    folder.mkdir()
    config = copy.deepcopy(model.active_peft_config)
    config.inference_mode = True
    config.modules_to_save = None
    config.base_model_name_or_path = config.revision = None
    # The weights that some ways of initialising change are saved as they became.
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
    """Id and commit of the LLM-ASR checkpoint that an adapter is for, or its folder."""
    if base is None:
        loaded = model.get_base_model()
        # The commit it was loaded at, if it is from the Hub.
        name, revision = loaded.name_or_path, vars(loaded.config).get("_commit_hash")
    else:
        name, revision = _split(base)
    if not name:
        raise ValueError(
            "`model` was not loaded from a checkpoint that its adapter could refer to; save what is below the adapter, load "
            'that and train on it, or use `form="slim"`.'
        )
    name, revision = _pin(name, revision, "base of the adapter")
    with open(find_file(name, CONFIG_NAME, revision=revision), encoding="utf-8") as file:
        check_config(json.load(file), LlmAsrConfig.model_type, CLASS_NAMES, name)
    return name, revision


def _save_adapter(model: PeftModel, folder: Path, base: str, revision: str | None) -> None:
    name = model.active_adapter
    # Without embeddings: the base has them, and PEFT would look for the base to find out.
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    if name != "default":
        for path in (folder / name).iterdir():
            path.replace(folder / path.name)
        (folder / name).rmdir()
    path = folder / ADAPTER_CONFIG_NAME
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.update(base_model_name_or_path=base, revision=revision)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["FORMS", "fetch_checkpoint", "find_form", "load_checkpoint", "save_checkpoint", "write_checksums"]
