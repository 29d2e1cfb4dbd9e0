"""Describes a checkpoint from its JSON files and the headers of its weight files."""

import json
import math
import os
from pathlib import Path

from huggingface_hub.repocard import metadata_load
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import safe_open
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_NAME,
)

from ..modeling.checkpoint_safety import CHECKSUMS_NAME, find_weights
from ..modeling.configuration_projector import LlmAsrProjectorConfig
from ..modeling.slim_checkpoint import ADAPTER_FOLDER, ROWS, VALUES
from ..training.run_record import RUN_RECORD_NAME
from .checkpoint_forms import find_form
from .remote_code import REMOTE_CODE


PARTS = ("audio_tower", "draft_head", "projector", "lm_head", "language_model")
CARD_NAME = "README.md"


def inspect_checkpoint(folder: str | os.PathLike) -> dict:
    """
    Describe a checkpoint of any form without reading its weights.

    Args:
        folder (`str` or `os.PathLike`): Local folder with a model or an adapter.

    Returns:
        `dict`: `form`; `bytes`, the size of all weight files; `files`, the weight files with their sizes in bytes; `parts`,
        the `parameters`, `bytes` and `dtypes` of each part in the folder; `speech_encoder` and `language_model`, their types
        and recorded origins; `projector`, its options; `languages`, the language codes in the model card and the number of
        languages that the processor can name; `provenance`. Values that the checkpoint does not record are `None`.

    Raises:
        `ValueError`: If there is no LLM-ASR checkpoint in `folder`, or one of its files is damaged.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG_NAME)
    form = find_form(folder)
    adapter = read_json(folder / ADAPTER_CONFIG_NAME)
    processor = read_json(folder / PROCESSOR_NAME)
    weights = [folder / name for name in find_all_weights(folder, form) if name.endswith(".safetensors")]
    return {
        "folder": str(folder),
        "form": form,
        "bytes": sum(path.stat().st_size for path in weights),
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in weights},
        "parts": _measure_parts(weights),
        "speech_encoder": _describe_backbone(config, "audio_config", "audio_tower"),
        "language_model": _describe_backbone(config, "text_config", "language_model"),
        "projector": describe_projector(config),
        "languages": {
            "card": _card_languages(folder),
            "named": None if processor is None else len(processor.get("languages", {})),
        },
        "provenance": {
            "base": adapter and {name: adapter.get(name) for name in ("base_model_name_or_path", "revision")},
            "converted_from": config and config.get("converted_from"),
            "transformers_version": config and config.get("transformers_version"),
            "checksums": (folder / CHECKSUMS_NAME).is_file(),
            "code": _describe_code(folder),
            "training": read_json(folder / RUN_RECORD_NAME),
        },
    }


def print_inspection(report: dict, console: Console) -> None:
    """Print the result of [`inspect_checkpoint`] as tables."""
    console.print(f"{escape(report['folder'])}: {report['form']} checkpoint, {format_bytes(report['bytes'])}")
    table = Table("part", "parameters", "size", "precision")
    for column in table.columns[1:3]:
        column.justify = "right"
    for name, part in report["parts"].items():
        table.add_row(name, f"{part['parameters']:,}", format_bytes(part["bytes"]), ", ".join(part["dtypes"]))
    total = sum(part["parameters"] for part in report["parts"].values())
    table.add_row("all", f"{total:,}", format_bytes(sum(part["bytes"] for part in report["parts"].values())), "")
    console.print(table)
    facts = Table(show_header=False)
    for name, value in _list_facts(report):
        facts.add_row(name, escape(value))
    console.print(facts)


def _list_facts(report: dict):
    for name in ("speech_encoder", "language_model"):
        found = report[name]
        if found is not None:
            place = found["name_or_path"] or "origin not recorded"
            revision = f" at {found['revision']}" if found["revision"] else ""
            yield name.replace("_", " "), f"{found['model_type']}, {place}{revision}"
    if report["projector"] is not None:
        options = [f"{name}={value}" for name, value in report["projector"].items() if name != "projector_type"]
        yield "projector", f"{report['projector']['projector_type']}: {', '.join(options)}"
    languages, provenance = report["languages"], report["provenance"]
    yield "languages", ", ".join(languages["card"] or ["not stated"])
    if languages["named"] is not None:
        yield "languages with a name", str(languages["named"])
    if provenance["base"] is not None:
        yield "adapter of", " at ".join(str(value) for value in provenance["base"].values() if value)
    source = provenance["converted_from"]
    if source is not None:
        place = " at ".join(source[name] for name in ("name_or_path", "revision") if source[name])
        yield "converted from", f"{place} ({source['model_type']}, licence {source['license'] or 'not stated'})"
    yield "saved by", f"Transformers {provenance['transformers_version'] or '(version not recorded)'}"
    yield "checksums", CHECKSUMS_NAME if provenance["checksums"] else "none"
    code = provenance["code"]
    if code is None:
        yield "code", "none: only the installed package can load it"
    else:
        yield (
            "code",
            "same as in this package"
            if not code["differing"]
            else f"differs from this package in {code['differing']}",
        )
    training = provenance["training"]
    if training is None:
        yield "training", "not recorded"
    else:
        yield "training", f"{training['steps']} steps, {training['hours']:.2f} h on {training['hardware']}"


def find_all_weights(folder: Path, form: str) -> dict[str, str]:
    """
    Paths of a checkpoint's weight files and of their index, by their names in the checkpoint; see [`find_weights`].

    Raises:
        `OSError`, `ValueError`: If a file is missing or incomplete.
    """
    weights = find_weights(folder, ADAPTER_SAFE_WEIGHTS_NAME if form == "adapter" else SAFE_WEIGHTS_NAME)
    if not weights:
        raise ValueError(f"{str(folder)!r} holds the shards of a distributed run; load it and save it first.")
    if form == "slim" and (folder / ADAPTER_FOLDER).is_dir():
        factors = find_weights(folder / ADAPTER_FOLDER, ADAPTER_SAFE_WEIGHTS_NAME)
        weights |= {f"{ADAPTER_FOLDER}/{name}": path for name, path in factors.items()}
    return weights


def describe_projector(config: dict | None) -> dict | None:
    """The options of the projector in `config.json` that its type uses."""
    if config is None:
        return None
    settings = LlmAsrProjectorConfig(**config["projector_config"])
    own = [name for name in vars(LlmAsrProjectorConfig)["__annotations__"] if name in config["projector_config"]]
    unused = set()
    if not settings.uses_cif:
        unused |= {name for name in own if name.startswith(("cif_", "draft_"))}
        unused |= {"expected_tokens_per_second", "quantity_loss_coef"}
    if not settings.uses_ctc:
        unused.add("ctc_loss_coef")
    if not settings.uses_experts:
        unused |= {name for name in own if "expert" in name or "rout" in name}
        unused |= {"merge", "norm_topk_prob"}
    else:
        unused |= {"intermediate_size", *(name for name in own if name.startswith("mlp_"))}
    if not settings.uses_convolutions:
        unused |= {"conv_kernel_size", "conv_strides"}
    if settings.reduction == "stack":
        unused.add("hidden_size")
    for reduction in {"stack", "qformer"} - {settings.reduction}:
        unused |= {name for name in own if name.startswith(f"{reduction}_")}
    return {"projector_type": settings.projector_type} | {
        name: getattr(settings, name) for name in own if name not in {*unused, "projector_type"}
    }


def _measure_parts(weights: list[Path]) -> dict[str, dict]:
    parts: dict[str, dict] = {}
    for path in weights:
        with safe_open(path, framework="pt") as file:
            headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: (header.get_shape(), header.get_dtype()) for name, header in headers.items()}
        for name, (shape, dtype) in tensors.items():
            names = name.removesuffix(ROWS).removesuffix(VALUES).split(".")
            part = next((part for part in PARTS if part in names), "others")
            if any(one.startswith("lora_") for one in names):
                part = f"{part}, LoRA"
            found = parts.setdefault(part, {"parameters": 0, "bytes": 0, "dtypes": []})
            found["bytes"] += math.prod(shape) * int("".join(filter(str.isdigit, dtype.partition("_")[0]))) // 8
            if not name.endswith(ROWS):
                found["parameters"] += math.prod(shape)
                if dtype not in found["dtypes"]:
                    found["dtypes"].append(dtype)
    return dict(sorted(parts.items()))


def _describe_backbone(config: dict | None, settings_name: str, part: str) -> dict | None:
    if config is None:
        return None
    settings = config[settings_name]
    reference = (config.get("backbones") or {}).get(part, {})
    return {
        "model_type": settings["model_type"],
        "name_or_path": reference.get("name_or_path") or settings.get("_name_or_path") or None,
        "revision": reference.get("revision"),
    }


def _card_languages(folder: Path) -> list[str] | None:
    card = folder / CARD_NAME
    languages = (metadata_load(card) or {}).get("language") if card.is_file() else None
    return [languages] if isinstance(languages, str) else languages


def _describe_code(folder: Path) -> dict | None:
    """The number of Python files, and the names of those that differ from the package."""
    files = sorted(folder.glob("*.py"))
    if not files:
        return None
    differing = [
        path.name
        for path in files
        if path.name not in REMOTE_CODE or REMOTE_CODE[path.name].read_bytes() != path.read_bytes()
    ]
    return {"files": len(files), "differing": differing}


def read_json(path: Path) -> dict | None:
    """Read a JSON file. `None` if it does not exist."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def format_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


__all__ = ["inspect_checkpoint", "print_inspection"]
