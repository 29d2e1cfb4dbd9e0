"""Records the inputs of a run as checksums, and checks that runs may be compared."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from comparison.experiment import Tuning
from datasets import Dataset
from torch import nn

from llm_asr.atomic_writing import write_text


ROOT = Path(__file__).parents[3]

# Code that determines the result of a run. The code of the report is excluded, because it runs later.
SOURCES = ("src/llm_asr/modeling", "src/llm_asr/processing", "src/llm_asr/training", "src/llm_asr/commands")
SOURCES += tuple(f"studies/projectors/comparison/{name}.py" for name in ("experiment", "manifest", "running"))

PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors", "numpy", "datasets")


def hash_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Checksum of the names, shapes, dtypes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def hash_weights(model: nn.Module) -> dict[str, str]:
    """Checksums of the parts of a model."""
    parts: dict[str, list[tuple[str, torch.Tensor]]] = {"audio_tower": [], "projector": [], "language_model": []}
    for name, tensor in model.state_dict().items():
        names = ["projector" if name == "draft_head" else name for name in name.split(".")]
        parts[next((part for part in parts if part in names), "language_model")].append((name, tensor))
    return {part: hash_tensors(tensors) for part, tensors in parts.items()}


def describe_projector(projector: nn.Module) -> dict[str, list]:
    """Shapes and checksums of the parameters of a projector."""
    return {
        name: [list(parameter.shape), hash_tensors([("", parameter)])]
        for name, parameter in projector.named_parameters()
    }


def describe_dataset(dataset: Dataset, audio_column: str = "audio") -> dict[str, Any]:
    """Number of rows, and a checksum of their texts and recordings."""
    digest = hashlib.sha256()
    for row in dataset:
        # The path of a recording does not matter, only its contents.
        known = {name: value for name, value in row.items() if name in ("row", "text", "language")}
        digest.update(hash_json(known).encode())
        audio = row[audio_column]
        if isinstance(audio, dict) and audio.get("bytes") is not None:
            digest.update(hashlib.sha256(audio["bytes"]).hexdigest().encode())
        else:
            digest.update(hash_file(audio["path"] if isinstance(audio, dict) else audio).encode())
    return {"rows": len(dataset), "sha256": digest.hexdigest()}


def hash_sources(root: Path = ROOT) -> str:
    """Checksum of the code that determines the result of a run."""
    files = []
    for source in SOURCES:
        path = root / source
        files += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return hash_json({file.relative_to(root).as_posix(): hash_file(file) for file in files})


def describe_provenance(root: Path = ROOT) -> dict[str, Any]:
    """Revision of the repository, whether files differ from it, and a checksum of the difference. `None` without git."""
    try:
        revision = _git(root, "rev-parse", "HEAD").strip()
        difference = _git(root, "diff", "HEAD", "--", *SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return {"revision": None}
    known = {"revision": revision, "dirty": bool(difference)}
    return {**known, "diff_sha256": hashlib.sha256(difference.encode()).hexdigest()} if difference else known


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def describe_machine(threads: int) -> dict[str, Any]:
    """Versions and hardware, which influence rounding."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": threads,
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def check_manifests(manifests: Iterable[Mapping[str, Any]]) -> None:
    """
    Refuse runs that differ in more than the projector, its tuning and the seed.

    All runs must have the same `fixed` (settings, data, prompts, code, versions and initial weights of all parts except the
    projector). Runs with the same seed must have the same `fixed_by_seed` (order of the data) and the same initial values of
    projector parameters with the same name and shape. Runs of an arm must have the same projector, learning rate and loudness.

    Args:
        manifests (`Iterable[dict]`): Manifests of the runs.

    Raises:
        `ValueError`: If there are differences. The error names the runs and up to ten differences.
    """
    differences: list[str] = []
    first: dict[Any, tuple[str, Any]] = {}

    def compare(key: Any, run: str, value: Any) -> None:
        other, expected = first.setdefault(key, (run, value))
        places = list_differences(expected, value, str(key[-1]))
        differences.extend(f"{place} of {other} and {run}" for place in places)

    for manifest in manifests:
        run = f"{manifest['arm']} (seed {manifest['seed']})"
        compare(("fixed",), run, manifest["fixed"])
        compare((manifest["seed"], "fixed_by_seed"), run, manifest["fixed_by_seed"])
        compare((manifest["arm"], "projector"), run, manifest["projector"])
        for choice, value in asdict(Tuning.of(manifest)).items():
            compare((manifest["arm"], choice), run, value)
        for name, (shape, checksum) in manifest["initial_projector"].items():
            compare((manifest["seed"], tuple(shape), f"initial_projector.{name}"), run, checksum)
    if differences:
        more = f" and {len(differences) - 10} more" if len(differences) > 10 else ""
        raise ValueError(f"Runs differ in more than the projector: {'; '.join(differences[:10])}{more}.")


def list_differences(first: Any, second: Any, place: str) -> Iterator[str]:
    """Yield the dotted paths at which two nested values differ."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in sorted({*first, *second}):
            yield from list_differences(first.get(name), second.get(name), f"{place}.{name}")
    elif first != second:
        yield place
