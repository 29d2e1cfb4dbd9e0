"""Options and errors that the commands of `llm-asr` share. The module imports PyTorch only when it needs it."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


DTYPES = ("auto", "float32", "bfloat16", "float16")
# Weights of 8 bits are for recognition on CPUs.
RECOGNITION_DTYPES = (*DTYPES, "int8")
DTYPE_HELP = "Dtype of the weights; by default the saved one, or float32 if the saved one is slow on the CPU."
INT8_HELP = f"{DTYPE_HELP} int8 is faster, for CPUs."
CHECKPOINT_FORMS = ("full", "slim", "adapter")


def add_recognition_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that recognise speech: voice activity detection, device, dtype and remote code."""
    from ..processing.voice_activity import VOICE_ACTIVITIES

    parser.add_argument(
        "--vad",
        choices=sorted(VOICE_ACTIVITIES),
        default="energy",
        help="Voice activity detection; by default energy.",
    )
    parser.add_argument("--device", default="auto", help="Device: auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--dtype", choices=RECOGNITION_DTYPES, default="auto", help=INT8_HELP)
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code from the checkpoint.")


class UsageError(Exception):
    """A request cannot be fulfilled. The message says why. The command has not changed anything."""


# Longest quoted message in characters. Messages of Transformers may have thousands.
MAX_QUOTED = 300


@contextmanager
def loading(what: str) -> Iterator[None]:
    """
    Turn any error inside the block into a `UsageError` of one sentence. Libraries raise many types for damaged files.

    Args:
        what (`str`): Name of the loaded object in the message.

    Raises:
        `UsageError`: Instead of any error.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what} cannot be loaded: {describe_error(error)}") from error


def describe_error(error: Exception) -> str:
    """The shortened message of an error on one line. The type comes first if the message alone does not explain the error."""
    text = " ".join(str(error).split())
    if not isinstance(error, (OSError, ValueError, ImportError, RuntimeError)) or not text:
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]} …"


def load_config(model: str, trust_remote_code: bool = False):
    """
    Load the configuration of a checkpoint without reading its weights.

    Args:
        model (`str`): Folder or Hub id, the value of `--model`.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code from the checkpoint.

    Raises:
        `UsageError`: If there is no such checkpoint, or it has another model type.
    """
    from transformers import AutoConfig

    from .. import registration  # noqa: F401 (registers the model with the `Auto` classes)
    from ..modeling.checkpoint_safety import check_json_files, naming_file

    with loading(f"--model {model!r}"):
        check_json_files(model)
        with naming_file("config.json", model):
            config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        if config.model_type != "llm_asr":
            raise ValueError(f"it is a {config.model_type!r} model and not an LLM-ASR model.")
    return config


def choose_device(name: str):
    """
    Return the device of a name. `"auto"` means an accelerator, or the CPU without one.

    Raises:
        `UsageError`: If the device does not exist.
    """
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        # Only using a device shows whether it exists. A build without CUDA raises an `AssertionError`.
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"--device {name!r} cannot be used: {error}") from error


def check_dtype(dtype: str, device) -> None:
    """
    Raises:
        `UsageError`: If the dtype cannot be used on the device.
    """
    if dtype == "int8" and device.type != "cpu":
        raise UsageError(
            f"--dtype int8 is for the CPU, and the device is {str(device)!r}; pass --device cpu or another dtype."
        )


def check_voice_activity(name: str) -> None:
    """
    Raises:
        `UsageError`: If the package of the voice activity detection `name` is not installed.
    """
    from importlib.util import find_spec

    if name == "silero" and find_spec("silero_vad") is None:
        raise UsageError('--vad silero needs a package that is not installed: `pip install "llm-asr[vad]"`.')


def add_keyword_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keywords",
        nargs="+",
        metavar="WORD",
        help="Words that may be spoken, such as names, for models trained with them.",
    )
    parser.add_argument(
        "--keywords-file", type=Path, metavar="FILE", help="UTF-8 file with a keyword on each line, beside --keywords."
    )


def read_keywords(args: argparse.Namespace) -> list[str] | None:
    """
    Return the keywords of `--keywords` and `--keywords-file`, or `None` if there are none.

    Raises:
        `UsageError`: If the file cannot be read.
    """
    keywords = list(args.keywords or [])
    if args.keywords_file is not None:
        try:
            lines = args.keywords_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--keywords-file {str(args.keywords_file)!r} cannot be read: {error}") from error
        keywords += [line.strip() for line in lines if line.strip()]
    return keywords or None


__all__ = [
    "CHECKPOINT_FORMS",
    "DTYPES",
    "DTYPE_HELP",
    "UsageError",
    "add_keyword_arguments",
    "check_voice_activity",
    "choose_device",
    "describe_error",
    "load_config",
    "loading",
    "read_keywords",
]
