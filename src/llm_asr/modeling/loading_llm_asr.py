"""Loading checkpoints in any of their forms: all weights, those that were trained alone, or an adapter."""

import copy
import json
import os

import torch
from huggingface_hub import ResolvedRevision
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME
from transformers.utils.hub import resolve_revision

from .checkpoint_safety import (
    CHECKSUMS_NAME,
    HUB_OPTIONS,
    check_checksums,
    check_config,
    find_file,
    find_weights,
)
from .configuration_llm_asr import check_backbones
from .slim_checkpoint import load_slim


class LlmAsrLoadingMixin:
    """Gives `from_pretrained` the slim form and adapters, and has it check what it is about to read."""

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

        Before any weight is read, the configuration must be that of this model, weights must be safetensors files of the
        checkpoint itself and of their full length, and every file must have its digest where one is written down: those of
        `SHA256SUMS`, if there is one, and those of the frozen parts always.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Local folder or Hub id.
            backbone_paths (`dict[str, str]`, *optional*):
                Where the frozen parts of a slim checkpoint are to be read instead of where it says: local folders, by
                `"audio_tower"` and `"language_model"`. They must hold the same files.
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
            # The revision, and the folder within it, are the adapter's.
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
            # The adapter's names are those of the model with a head.
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
        stored, _ = cls.config_class.get_config_dict(name_or_path, **hub_kwargs)
        class_names = {cls.__name__, "LlmAsrModel", "LlmAsrForConditionalGeneration"}
        check_config(stored, cls.config_class.model_type, class_names, name_or_path)
        weights = find_weights(name_or_path, variant=kwargs.get("variant"), **hub_kwargs)
        # What had to be fetched again has been.
        again = {**hub_kwargs, "force_download": False}
        if stored.get("backbones") is None:
            if backbone_paths:
                raise ValueError(
                    f"`backbone_paths` is for slim checkpoints, and {str(name_or_path)!r} is none; leave it out."
                )
            check_checksums(name_or_path, weights, **hub_kwargs)
            loaded = super().from_pretrained(name_or_path, *model_args, config=config, **again, **kwargs)
            return _with_commit(loaded, hub_kwargs["revision"])

        check_backbones(stored["backbones"])
        _check_device_map(kwargs.get("device_map"))
        if not isinstance(config, PreTrainedConfig):
            # They are of the model, and the configuration would take them for its own.
            held = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            source = name_or_path if config is None else config
            config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **again, **kwargs)
            kwargs = {**{name: value for name, value in kwargs.items() if name not in HUB_OPTIONS}, **held}
        config = copy.deepcopy(config)
        config.backbones = stored["backbones"]
        tensors = load_slim(cls.headed_class(), config, name_or_path, weights, backbone_paths, **hub_kwargs)
        if kwargs.get("generation_config") is None:
            kwargs["generation_config"] = GenerationConfig.from_pretrained(name_or_path, **again)
        loaded = super().from_pretrained(None, *model_args, config=config, state_dict=tensors, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # With "auto", it is known only now.
        _check_device_map(getattr(model, "hf_device_map", None))
        model.config.name_or_path = model.name_or_path = str(name_or_path)
        # Or it would be saved with its weights as the frozen parts have them in memory, and not as they have them on disk.
        model._weight_conversions = None
        return _with_commit(loaded, hub_kwargs["revision"])

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Like [`PreTrainedModel.save_pretrained`]: all weights, whatever form they were loaded from."""
        sums = os.path.join(save_directory, CHECKSUMS_NAME)
        if os.path.exists(sums):
            # Those of the weights that are replaced.
            os.remove(sums)
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
    with open(find_file(adapter, ADAPTER_CONFIG_NAME, **hub_kwargs), encoding="utf-8") as file:
        settings = json.load(file)
    base = settings.get("base_model_name_or_path")
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
    if (
        find_file(base, ADAPTER_CONFIG_NAME, revision=settings.get("revision"), **_without_place(hub_kwargs))
        is not None
    ):
        raise ValueError(f"The base of the adapter {str(adapter)!r} is itself an adapter, {base!r}; merge that first.")
    weights = find_weights(adapter, ADAPTER_SAFE_WEIGHTS_NAME, **hub_kwargs)
    check_checksums(adapter, weights, **hub_kwargs)
    return base, settings.get("revision"), weights


def _attach_adapter(
    model: PreTrainedModel, adapter: str | os.PathLike, name: str, weights: dict[str, str], **hub_kwargs
) -> None:
    """
    Like `load_adapter`, but LoRA stays in float32 in a model of lower precision, as it was trained; as PEFT does it.

    Raises:
        `ValueError`: If the weights are not those that the adapter's configuration says.
    """
    # Slow to import, and few need it.
    from peft import PeftConfig
    from peft.functional import cast_adapter_dtype, get_peft_model_state_dict, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(adapter, **hub_kwargs)
    config.inference_mode = True
    model.add_adapter(config, name)
    cast_adapter_dtype(model, name)
    tensors = {}
    for file_name, path in weights.items():
        if file_name.endswith(".safetensors"):
            tensors.update((key.removeprefix("base_model.model."), tensor) for key, tensor in load_file(path).items())
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    differing = sorted(set(expected) ^ set(tensors))
    if differing:
        raise ValueError(
            f"The weights of the adapter {str(adapter)!r} are not those that its {ADAPTER_CONFIG_NAME} says, or not for this "
            f"base: {len(differing)} tensors are on one side alone, {differing[0]!r} among them; save it again."
        )
    set_peft_model_state_dict(model, tensors, name)
    model.eval()


def _with_commit(loaded, revision: str | None):
    """Note the commit of the Hub that a model is from, which publishing must know and no configuration saves."""
    if isinstance(revision, ResolvedRevision):
        (loaded[0] if isinstance(loaded, tuple) else loaded).config._commit_hash = revision.resolved
    return loaded


def _check_device_map(device_map: dict | str | torch.device | int | None) -> None:
    if isinstance(device_map, dict) and "disk" in device_map.values():
        raise ValueError(
            "`device_map` leaves weights on disk, which needs them in files, and a slim checkpoint has them composed; load it "
            "without, `save_pretrained` it to another folder, and load that."
        )


def _without_place(hub_kwargs: dict) -> dict:
    return {name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")}


def _resolved(name_or_path: str | os.PathLike, hub_kwargs: dict) -> dict:
    """With the commit that the revision is now: what is checked is what is read, whatever is pushed in the meantime."""
    names = ("revision", "token", "local_files_only", "cache_dir")
    revision = resolve_revision(name_or_path, **{name: hub_kwargs[name] for name in names if name in hub_kwargs})
    return {**hub_kwargs, "revision": revision}
