"""Loads checkpoints in each form: all weights, only the trained weights, or an adapter."""

import copy
import os
from typing import Any

import torch
from huggingface_hub import HfApi, ResolvedRevision, is_offline_mode
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    logging,
)

from .adapter_weights import fill_adapter, has_adapter, read_adapter_config, save_adapter
from .backbone_references import check_backbones
from .checkpoint_safety import (
    CHECKSUMS_NAME,
    HUB_OPTIONS,
    check_checksums,
    check_config,
    check_json_files,
    find_file,
    find_weights,
    is_piece,
    naming_file,
)
from .generation_settings import check_generation_settings
from .model_interface import ModelInterface
from .part_dtypes import count_part_dtypes, note_part_dtypes, read_part_dtypes, resolve_part_dtypes
from .slim_checkpoint import empty_model, load_slim
from .weight_checks import check_complete, check_finite, check_headers


logger = logging.get_logger(__name__)


class LlmAsrLoadingMixin(ModelInterface):
    """Makes `from_pretrained` load slim checkpoints and adapters, and check files before it reads them."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        config=None,
        use_safetensors: bool | None = None,
        backbone_paths: dict[str, str | os.PathLike] | None = None,
        adapter_kwargs: dict | None = None,
        **kwargs,
    ):
        """
        Load a checkpoint, as [`PreTrainedModel.from_pretrained`] does; a *slim* one, which names its frozen parts and holds
        what was trained; or a PEFT *adapter*, whose base is either of them and is loaded by the revision that it is pinned
        to. The adapter stays an adapter, as with `load_adapter`.

        Each part keeps the dtype that it was saved in: the speech encoder, the projector with the draft head, and the
        language model with its head.

        Before any weight is read, the configuration must be that of this model, weights must be safetensors files of the
        checkpoint itself and of their full length, and every file must have its digest where one is written down: those of
        `SHA256SUMS`, if there is one, and those of the frozen parts always.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Local folder or Hub id.
            backbone_paths (`dict[str, str]`, *optional*):
                Where the frozen parts of a slim checkpoint are to be read instead of where it says: local folders, by
                `"audio_tower"` and `"language_model"`. They must hold the same files.
            dtype (`torch.dtype`, `str` or `dict`, *optional*, defaults to `"auto"`):
                One dtype for all parts, or a mapping such as `{"audio_config": "float16", "": "bfloat16"}` from
                sub-configurations to dtypes, in which `""` is for the parts that it does not name. By default, and in a
                mapping without `""`, parts keep the dtype that they were saved in.
            output_loading_info (`bool`, *optional*, defaults to `False`):
                Whether to return the model and a dict of the missing, unexpected and mismatched weights. Missing weights are
                then drawn at random; without it they are an error.
            kwargs:
                See [`PreTrainedModel.from_pretrained`].

        Raises:
            `OSError`: If the checkpoint, a frozen part or a weight file is not there.
            `ValueError`: If what is there is not what is expected, or not safe to read; the message says what to do.
        """
        if use_safetensors is False:
            raise ValueError("`use_safetensors=False` would read pickled weights, which can run code; leave it out.")
        kwargs["use_safetensors"] = True
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)

        hub_kwargs = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        adapter_kwargs = dict(adapter_kwargs or {})
        adapter = adapter_kwargs.pop("_adapter_model_path", None)
        adapter_kwargs = _resolved(adapter or pretrained_model_name_or_path, {**hub_kwargs, **adapter_kwargs})
        if adapter is None and find_file(pretrained_model_name_or_path, ADAPTER_CONFIG_NAME, **adapter_kwargs):
            adapter = pretrained_model_name_or_path
            # The revision and the subfolder belong to the adapter.
            hub_kwargs = _without_place(hub_kwargs)
        if adapter is None:
            return cls._from_checkpoint(
                pretrained_model_name_or_path,
                *model_args,
                config=config,
                backbone_paths=backbone_paths,
                hub_kwargs=hub_kwargs,
                **kwargs,
            )

        if cls.headed_class() is not cls:
            # The adapter uses the tensor names of the model with a head.
            loaded = cls.headed_class().from_pretrained(
                adapter, *model_args, backbone_paths=backbone_paths, **adapter_kwargs, **kwargs
            )
            return (loaded[0].model, loaded[1]) if isinstance(loaded, tuple) else loaded.model
        base, revision, weights = _check_adapter(adapter, **adapter_kwargs)
        if revision is not None:
            # What the `Auto` classes have read is of another revision.
            config, hub_kwargs = None, {**hub_kwargs, "revision": revision}
        adapter_name = kwargs.pop("adapter_name", "default")
        loaded = cls._from_checkpoint(
            base, *model_args, config=config, backbone_paths=backbone_paths, hub_kwargs=hub_kwargs, **kwargs
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        _attach_adapter(model, adapter, adapter_name, weights, **adapter_kwargs)
        return loaded

    @classmethod
    def _from_checkpoint(cls, name_or_path, *model_args, config, backbone_paths, hub_kwargs, **kwargs):
        hub_kwargs = _resolved(name_or_path, hub_kwargs)
        check_json_files(name_or_path, (CONFIG_NAME,), **hub_kwargs)
        stored, _ = cls.config_class.get_config_dict(name_or_path, **hub_kwargs)
        class_names = {cls.__name__, "LlmAsrModel", "LlmAsrForConditionalGeneration"}
        check_config(stored, cls.config_class.model_type, class_names, name_or_path)
        weights = find_weights(name_or_path, variant=kwargs.get("variant"), **hub_kwargs)
        torch_dtype = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", torch_dtype)
        # What had to be fetched again has been.
        again = {**hub_kwargs, "force_download": False}
        if not isinstance(config, PreTrainedConfig):
            source = name_or_path if config is None else config
            with naming_file(CONFIG_NAME, source):
                config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **again, **kwargs)
            kwargs = {name: value for name, value in kwargs.items() if name not in HUB_OPTIONS}
        config = copy.deepcopy(config)
        # A model without a head is saved without generation settings.
        is_headless = stored.get("architectures") == ["LlmAsrModel"]
        if cls.can_generate() and kwargs.get("generation_config") is None and not is_headless:
            check_generation_settings(name_or_path, config.text_config.vocab_size, **again)
        if stored.get("backbones") is None:
            if backbone_paths:
                raise ValueError(
                    f"`backbone_paths` is for slim checkpoints, and {str(name_or_path)!r} is none; leave it out."
                )
            check_checksums(name_or_path, weights, **hub_kwargs)
            with naming_file(CONFIG_NAME, name_or_path):
                skeleton = empty_model(cls, copy.deepcopy(config))
            # Quantized weights, and pieces of distributed training, have other sizes.
            is_plain = not hasattr(config, "quantization_config") and not any(map(is_piece, weights))
            if is_plain:
                check_headers(
                    skeleton,
                    weights,
                    name_or_path,
                    may_mismatch=kwargs.get("ignore_mismatched_sizes", False),
                    may_lack=kwargs.get("output_loading_info", False),
                )
            config.part_dtypes = resolve_part_dtypes(dtype, read_part_dtypes(weights))
            kwargs["dtype"] = config.part_dtypes.get("text_config")
            model = cls._load_complete(name_or_path, name_or_path, *model_args, config=config, **again, **kwargs)
            return _with_commit(model, hub_kwargs["revision"])

        check_backbones(stored["backbones"])
        _check_device_map(kwargs.get("device_map"))
        config.backbones = stored["backbones"]
        tensors = load_slim(cls.headed_class(), config, name_or_path, weights, backbone_paths, **hub_kwargs)
        if cls.can_generate() and kwargs.get("generation_config") is None:
            with naming_file(GENERATION_CONFIG_NAME, name_or_path):
                kwargs["generation_config"] = GenerationConfig.from_pretrained(name_or_path, **again)
        saved = count_part_dtypes((name, tensor.dtype, tensor.numel()) for name, tensor in tensors.items())
        config.part_dtypes = resolve_part_dtypes(dtype, saved)
        kwargs["dtype"] = config.part_dtypes["text_config"]
        loaded = cls._load_complete(name_or_path, None, *model_args, config=config, state_dict=tensors, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # With `device_map="auto"`, the devices are known only after loading.
        _check_device_map(getattr(model, "hf_device_map", None))
        model.config.name_or_path = model.name_or_path = str(name_or_path)
        # Otherwise `save_pretrained` would write the weights of the frozen parts in their layout in memory, not in that of files.
        model._weight_conversions = None
        return _with_commit(loaded, hub_kwargs["revision"])

    @classmethod
    def _load_complete(
        cls, source, *args, output_loading_info: bool = False, ignore_mismatched_sizes: bool = False, **kwargs
    ):
        """
        Call [`PreTrainedModel.from_pretrained`], and check that the weights are those of the model, and finite.

        A caller that asks for `output_loading_info` is told which weights are missing or unexpected; no error is raised.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        model, info = loaded
        compared = dict(info)
        if ignore_mismatched_sizes:
            compared["mismatched_keys"] = set()
        if output_loading_info:
            compared["missing_keys"] = compared["unexpected_keys"] = set()
        # The model without a head is loaded from checkpoints that have one.
        check_complete(compared, source, ignored=() if cls.headed_class() is cls else ("lm_head.", "draft_head."))
        check_finite(model, source)
        return (model, info) if output_loading_info else model

    @classmethod
    def is_custom_code(cls) -> bool:
        """
        Return `False`, so that Transformers initialises this model as one of its own.

        For custom code, Transformers skips modules that have no weights of their own. Some of them fill the buffers of their
        children. `_init_weights` does not change loaded weights.
        """
        return False

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """
        Save all weights, whatever form they were loaded from; see [`PreTrainedModel.save_pretrained`].

        If the model has an adapter, only the adapter is saved.
        """
        sums = os.path.join(save_directory, CHECKSUMS_NAME)
        if os.path.exists(sums):
            # The checksums are those of the weights that this call replaces.
            os.remove(sums)
        if has_adapter(self):
            save_adapter(self, save_directory)
            return
        note_part_dtypes(self.config, self)
        backbones, self.config.backbones = self.config.backbones, None
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.backbones = backbones


def _check_adapter(adapter: str | os.PathLike, **hub_kwargs) -> tuple[str, str | None, dict[str, str]]:
    """
    Check the files of an adapter.

    Returns:
        `tuple`: Its base, the revision that it is pinned to, if any, and the paths of its weight files by name.
    """
    settings = read_adapter_config(adapter, **hub_kwargs)
    base = settings.base_model_name_or_path
    if not base:
        raise ValueError(
            f"{ADAPTER_CONFIG_NAME} of {str(adapter)!r} does not say what model it is for (`base_model_name_or_path`); load "
            "that model and pass it to `PeftModel.from_pretrained`."
        )
    if os.path.isabs(base) and not os.path.isdir(base):
        raise OSError(
            f"The base of the adapter {str(adapter)!r} is the local folder {base!r}, which is not there; correct "
            f"`base_model_name_or_path` in {ADAPTER_CONFIG_NAME}, or load the base and pass it to `PeftModel.from_pretrained`."
        )
    if os.path.isdir(adapter) and os.path.exists(
        os.path.join(adapter, hub_kwargs.get("subfolder") or "", CONFIG_NAME)
    ):
        raise ValueError(
            f"{str(adapter)!r} holds a model ({CONFIG_NAME}) and an adapter ({ADAPTER_CONFIG_NAME}); move the adapter to a "
            "folder of its own."
        )
    if find_file(base, ADAPTER_CONFIG_NAME, revision=settings.revision, **_without_place(hub_kwargs)) is not None:
        raise ValueError(f"The base of the adapter {str(adapter)!r} is itself an adapter, {base!r}; merge that first.")
    weights = find_weights(adapter, ADAPTER_SAFE_WEIGHTS_NAME, **hub_kwargs)
    check_checksums(adapter, weights, **hub_kwargs)
    return base, settings.revision, weights


def _attach_adapter(
    model: PreTrainedModel, adapter: str | os.PathLike, name: str, weights: dict[str, str], **hub_kwargs
) -> None:
    """
    Add an adapter to a model, as `load_adapter` does.

    LoRA is float32 in a model of lower precision, as in PEFT. Modules that were trained as a whole keep their saved dtype.

    Raises:
        `ValueError`: If the weights are not those that the adapter's configuration says.
    """
    # Import it only when it is needed, because the import is slow.
    from peft import inject_adapter_in_model
    from peft.functional import cast_adapter_dtype

    config = read_adapter_config(adapter, **hub_kwargs)
    config.inference_mode = True
    with naming_file(ADAPTER_CONFIG_NAME, adapter):
        inject_adapter_in_model(config, model, name)
    # Transformers' own methods for adapters look at it. They need a newer PEFT from Transformers 5.24 on.
    model._hf_peft_config_loaded = True
    cast_adapter_dtype(model, name)
    fill_adapter(model, name, weights, adapter)
    model.eval()


def _with_commit(loaded, revision: str | None):
    """Store the Hub commit of a model. Publishing needs the commit, and no configuration saves it."""
    if isinstance(revision, ResolvedRevision):
        (loaded[0] if isinstance(loaded, tuple) else loaded).config._commit_hash = revision.resolved
    return loaded


def _check_device_map(device_map: dict | str | torch.device | int | None) -> None:
    if isinstance(device_map, dict) and "disk" in device_map.values():
        raise ValueError(
            "`device_map` leaves weights on disk, but the weights of a slim checkpoint are composed in memory; load it without "
            "`device_map`, save it with `save_pretrained` to another folder, and load that folder."
        )


def _without_place(hub_kwargs: dict) -> dict:
    return {name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")}


def _resolved(name_or_path: str | os.PathLike, hub_kwargs: dict) -> dict:
    """Replace the revision by its current commit, so that a push in the meantime does not change the files."""
    hub_kwargs = {"revision": None, **hub_kwargs}
    if os.path.exists(name_or_path):
        return hub_kwargs
    names = ("revision", "token", "cache_dir")
    options = {name: hub_kwargs[name] for name in names if name in hub_kwargs}
    is_offline = hub_kwargs.get("local_files_only", False) or is_offline_mode()
    try:
        revision = HfApi().resolve_revision(str(name_or_path), local_files_only=is_offline, **options)
    except Exception:
        # The same fault stops loading, which reports it better.
        logger.debug(f"The revision of {name_or_path!r} could not be resolved.", exc_info=True)
        return hub_kwargs
    return {**hub_kwargs, "revision": revision}
