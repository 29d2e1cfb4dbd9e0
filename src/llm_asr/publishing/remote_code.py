"""Adds the package's code to a published checkpoint, so that it loads without the package."""

import json
import os
from importlib.resources import files
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME

from ..atomic_writing import atomic_path
from ..modeling.configuration_llm_asr import LlmAsrConfig
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration, LlmAsrModel
from ..processing.pipeline_llm_asr import LlmAsrPipeline
from ..processing.processing_llm_asr import LlmAsrProcessor


# The package's code files, by their names in a checkpoint.
REMOTE_CODE = {
    source.name: source
    for package in ("llm_asr.modeling", "llm_asr.processing")
    for source in files(package).iterdir()
    if source.name.endswith(".py") and source.name != "__init__.py"
}


def write_remote_code(folder: str | os.PathLike) -> list[str]:
    """
    Copy the package's code into the folder of a checkpoint. `trust_remote_code=True` then loads the checkpoint without the
    package.

    The code is that of the imported package, with which the publisher ran the model. It replaces existing copies. A program
    that imports the package uses the package's own code and ignores the copies.

    The function removes paths on the publisher's machine from the configuration. It replaces files instead of writing to
    them, so that the targets of links do not change.

    Args:
        folder (`str` or `os.PathLike`): Folder of a saved model with its processor.

    Returns:
        `list[str]`: Sorted names of the Python files in `folder`.

    Raises:
        `ValueError`: If there is no LLM-ASR model with its processor in `folder`, its tokenizer or feature extractor needs
            code of its own, or there are Python files that are not from the package. Nothing is written then.
    """
    folder = Path(folder)
    config = _read_json(folder / CONFIG_NAME)
    if config.get("model_type") != LlmAsrConfig.model_type:
        raise ValueError(
            f"`folder` {str(folder)!r} holds a model of type {config.get('model_type')!r}; this package's code is for the "
            f"type {LlmAsrConfig.model_type!r}."
        )
    processor_config = _read_json(folder / PROCESSOR_NAME)
    tokenizer_config = _read_json(folder / TOKENIZER_CONFIG_FILE)
    for name, settings in ((PROCESSOR_NAME, processor_config), (TOKENIZER_CONFIG_FILE, tokenizer_config)):
        # The processor's own entry is written below.
        named = _auto_classes(settings) - {"AutoProcessor"}
        if named:
            raise ValueError(
                f"{name} in `folder` {str(folder)!r} names code of its own for {sorted(named, key=str)}, which is not published; use a "
                "tokenizer and a feature extractor from Transformers."
            )
    others = [
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if path.parent != folder or path.name not in REMOTE_CODE
    ]
    if others:
        raise ValueError(
            f"`folder` {str(folder)!r} holds Python files that are not from the package: {sorted(others)}; move them away."
        )

    config = _cleaned(config)
    config["auto_map"] = {
        "AutoConfig": _reference(LlmAsrConfig),
        "AutoModel": _reference(LlmAsrModel),
        "AutoModelForSpeechSeq2Seq": _reference(LlmAsrForConditionalGeneration),
    }
    config["custom_pipelines"] = {
        "automatic-speech-recognition": {"impl": _reference(LlmAsrPipeline), "pt": ["AutoModelForSpeechSeq2Seq"]}
    }
    processor_config["auto_map"] = {"AutoProcessor": _reference(LlmAsrProcessor)}
    for name, source in REMOTE_CODE.items():
        _replace(folder / name, source.read_bytes())
    # Write the configurations last, so that they never name missing code.
    for name, settings in ((PROCESSOR_NAME, processor_config), (CONFIG_NAME, config)):
        _replace(folder / name, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
    return sorted(REMOTE_CODE)


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _auto_classes(settings: dict) -> set[str]:
    """Auto classes for which `settings`, at any depth, name code."""
    named = set(settings.get("auto_map", ()))
    return named.union(*(_auto_classes(part) for part in settings.values() if isinstance(part, dict)))


def _cleaned(settings: dict) -> dict:
    """Remove entries that name other code, and local paths of the parts."""
    return {
        name: _cleaned(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in ("auto_map", "custom_pipelines") and not (name == "_name_or_path" and _is_local(value))
    }


def _is_local(name_or_path: str) -> bool:
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return True
    return Path(name_or_path).exists()


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(
            f"`folder` {str(path.parent)!r} has no {path.name}; save a model and its processor there first."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} in `folder` {str(path.parent)!r} is not JSON: {error}.") from error


def _replace(path: Path, content: bytes) -> None:
    with atomic_path(path) as written:
        written.write_bytes(content)


__all__ = ["REMOTE_CODE", "write_remote_code"]
