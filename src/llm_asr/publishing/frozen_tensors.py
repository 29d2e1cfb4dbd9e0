"""Reads the original tensors of a model's frozen parts, one at a time, from the files of those parts."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from safetensors import safe_open

from ..modeling.backbone_references import BACKBONES
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration
from ..modeling.slim_checkpoint import compose_backbones, fit_rows


class FrozenTensors:
    """
    The tensors of the original speech encoder and language model, by their names in the model.

    [`~FrozenTensors.get`] reads one tensor at a time, so that only one is in memory. Some mixture-of-experts language models
    have other tensor names in their files than in the model. Such a part is loaded as a whole.

    Args:
        model ([`LlmAsrForConditionalGeneration`]): The model.
        folders, dtypes (`Mapping[str, str]`): Local folder and dtype of each part, by the names in `BACKBONES`.
    """

    def __init__(self, model: LlmAsrForConditionalGeneration, folders: Mapping[str, str], dtypes: Mapping[str, str]):
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self.dtypes = {part: getattr(torch, dtypes[part]) for part in BACKBONES}
        self.sources: dict[str, tuple[str, str, torch.dtype]] = {}
        self.loaded: dict[str, torch.Tensor] = {}
        for part, modules in (("audio_tower", ("model.audio_tower.",)), ("language_model", ("model.language_model.", "lm_head."))):  # fmt: skip
            names = [
                name for name in self.shapes if name.startswith(modules) and name not in model.all_tied_weights_keys
            ]
            found = _find_sources(names, folders[part])
            if found is None:
                composed = compose_backbones(type(model), model.config, folders, dtypes)
                self.loaded.update((name, composed[name]) for name in names if name in composed)
            else:
                self.sources.update((name, (*source, self.dtypes[part])) for name, source in found.items())

    def get(self, name: str) -> torch.Tensor | None:
        """Read a tensor in its shape in the model. `None` if it belongs to neither part."""
        if name in self.loaded:
            return self.loaded[name]
        if name not in self.sources:
            return None
        path, key, dtype = self.sources[name]
        # Open the file for each tensor: pages of a memory-mapped file stay in memory until it is closed.
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(key)
        # Integer buffers, such as the batch counters of batch norms, keep their dtype.
        return fit_rows(tensor.to(dtype) if tensor.is_floating_point() else tensor, self.shapes[name])

    def num_bytes(self, part: str) -> int:
        """Size of a part in its dtype."""
        itemsize = self.dtypes[part].itemsize
        names = (name for name in (*self.sources, *self.loaded) if name.startswith(f"model.{part}."))
        return sum(self.shapes[name].numel() * itemsize for name in names)


def _find_sources(names: list[str], folder: str) -> dict[str, tuple[str, str]] | None:
    """File and key of each tensor of a part. `None` if the files lack a tensor of one of the names."""
    files = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    keys: dict[str, str] = {}
    for name in files:
        with safe_open(os.path.join(folder, name), framework="pt") as file:
            keys.update(dict.fromkeys(file.keys(), os.path.join(folder, name)))
    # Names within the part: "layers.0.fc1.weight" for "model.audio_tower.layers.0.fc1.weight".
    inner = {name: name.removeprefix("model.").partition(".")[2] for name in names if name.startswith("model.")}
    prefix = _common_prefix(inner.values(), keys)
    found = {name: prefix + short for name, short in inner.items()}
    found.update((name, name) for name in names if name not in inner)
    if not all(key in keys for key in found.values()):
        return None
    return {name: (keys[key], key) for name, key in found.items()}


def _common_prefix(names: Iterable[str], keys: Iterable[str]) -> str:
    """The most frequent prefix of `names` among `keys`, such as "model.encoder." in Whisper checkpoints."""
    ends = set(names)
    prefixes: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in ends:
                prefixes["".join(f"{part}." for part in parts[:start])] += 1
    return prefixes.most_common(1)[0][0] if prefixes else ""
