"""Multilingual, LLM-based speech recognition on Hugging Face Transformers."""

import sys
from importlib import import_module
from itertools import pairwise
from pathlib import PurePath


__version__ = "0.2.0"

__all__ = [
    "LlmAsrConfig",
    "LlmAsrForConditionalGeneration",
    "LlmAsrModel",
    "LlmAsrPipeline",
    "LlmAsrPreTrainedModel",
    "LlmAsrProcessor",
    "LlmAsrProjectorConfig",
]


def _is_command_line() -> bool:
    """Whether Python runs `llm-asr` or `python -m llm_asr`."""
    return PurePath(sys.argv[0]).stem == "llm-asr" or ("-m", __name__) in pairwise(sys.orig_argv)


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".registration", __name__), name)


# Importing Transformers takes seconds. The command line imports it only when a command needs it.
if not _is_command_line():
    from .registration import (
        LlmAsrConfig,
        LlmAsrForConditionalGeneration,
        LlmAsrModel,
        LlmAsrPipeline,
        LlmAsrPreTrainedModel,
        LlmAsrProcessor,
        LlmAsrProjectorConfig,
    )
