"""The package's code inside a published checkpoint, for those who have Transformers alone."""

import json
import os
from importlib.resources import files
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME

from ..modeling.configuration_llm_asr import LlmAsrConfig
from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration, LlmAsrModel
from ..processing.pipeline_llm_asr import LlmAsrPipeline
from ..processing.processing_llm_asr import LlmAsrProcessor


# What a published folder holds, by its name there.
REMOTE_CODE = {
    source.name: source
    for package in ("llm_asr.modeling", "llm_asr.processing")
    for source in files(package).iterdir()
    if source.name.endswith(".py") and source.name != "__init__.py"
}


def write_remote_code(folder: str | os.PathLike) -> list[str]:
    """
    Put the package's code beside a checkpoint, which `trust_remote_code=True` then loads without the package.

    It is the code of the package that is imported, which is what the publisher has run, in place of any that was there.
    Whoever imports the package loads the checkpoint by it, whatever code lies beside it.

    What the configuration says of places on the publisher's machine is removed. Files are replaced, not written to, so that
    nothing changes in another place that a link leads to.

    Args:
        folder (`str` or `os.PathLike`): Where a model and its processor are saved.

    Returns:
        `list[str]`: Names of the Python files in `folder`, sorted.

    Raises:
        `ValueError`: If there is no LLM-ASR model with its processor in `folder`, if its tokenizer or feature extractor
            needs code of its own, or if there are Python files that are not the package's. Nothing has been written then.
    """
    folder = Path(folder)
    config = _read_json(folder / CONFIG_NAME)
    if config.get("model_type") != LlmAsrConfig.model_type:
        raise ValueError(
            f"`folder` {str(folder)!r} holds a model of type {config.get('model_type')!r}; the code is that of "
            f"{LlmAsrConfig.model_type!r}."
        )
    processor_config = _read_json(folder / PROCESSOR_NAME)
    tokenizer_config = _read_json(folder / TOKENIZER_CONFIG_FILE)
    for name, settings in ((PROCESSOR_NAME, processor_config), (TOKENIZER_CONFIG_FILE, tokenizer_config)):
        # The processor's is this package's, and is written below.
        named = _auto_classes(settings) - {"AutoProcessor"}
        if named:
            raise ValueError(
                f"{name} in `folder` {str(folder)!r} names code of its own for {sorted(named, key=str)}, which is not published; use a "
                "tokenizer and a feature extractor that Transformers has."
            )
    others = [
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if path.parent != folder or path.name not in REMOTE_CODE
    ]
    if others:
        raise ValueError(
            f"`folder` {str(folder)!r} holds Python files that are not the package's: {sorted(others)}; move them away."
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
    # Last: code is named only where it is.
    for name, settings in ((PROCESSOR_NAME, processor_config), (CONFIG_NAME, config)):
        _replace(folder / name, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
    return sorted(REMOTE_CODE)


def _reference(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _auto_classes(settings: dict) -> set[str]:
    """Auto classes that `settings`, or any part of them, name code for."""
    named = set(settings.get("auto_map", ()))
    return named.union(*(_auto_classes(part) for part in settings.values() if isinstance(part, dict)))


def _cleaned(settings: dict) -> dict:
    """`settings` without what would run other code, and without where their parts lay on the publisher's machine."""
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
    written = path.with_name(f"{path.name}.tmp")
    written.write_bytes(content)
    written.replace(path)


__all__ = ["REMOTE_CODE", "write_remote_code"]
