"""`llm-asr serve`: run an OpenAI-compatible transcription server."""

import argparse
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from ..memory import trimmed_memory
from ..serving.settings import ENGINES, ServerSettings
from .options import (
    INT8_HELP,
    RECOGNITION_DTYPES,
    UsageError,
    check_dtype,
    check_voice_activity,
    choose_device,
    loading,
)


# Anyone on the machine can read the arguments of a program, but only its owner can read its environment.
API_KEY_VARIABLE = "LLM_ASR_API_KEY"

WEB_PACKAGES = ("prometheus_client", "python_multipart", "starlette", "uvicorn", "websockets")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

# Options of the command that are fields of `ServerSettings`, and their help.
SETTINGS = {
    "max_requests": "Largest number of requests in progress; further requests are answered with 429.",
    "max_upload_mb": "Largest file, in MiB.",
    "max_recording_s": "Longest recording, in seconds.",
    "upload_timeout_s": "Longest time in seconds that a client may take to send its request.",
    "batch_size": "Largest number of segments in a batch of the front end.",
    "batch_seconds": "Largest number of seconds of audio in a batch of the front end, padding included.",
    "batch_wait_ms": "Longest time in milliseconds that a segment waits for others.",
    "segments_per_request": "Largest number of segments of one recording in progress.",
    "max_streams": "Largest number of realtime sessions.",
    "max_stream_s": "Longest audio of a realtime session, in seconds.",
    "stream_idle_s": "Seconds without an event after which a realtime session ends.",
    "vad": "Voice activity detection.",
    "drain_s": "Seconds that requests in progress have after SIGTERM.",
}


def parse_port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; ports are numbers up to 65535.")
    return int(text)


def parse_json_object(text: str) -> dict:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError(f"{text!r} must be a JSON object, such as '{{\"max_num_seqs\": 8}}'.")
    return fields


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="CHECKPOINT", help="Folder or Hub id of a checkpoint, or of an adapter.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on; by default only this machine can connect."
    )
    parser.add_argument("--port", type=parse_port, default=8000, help="Port to listen on; by default 8000.")
    parser.add_argument(
        "--served-model-name",
        nargs="+",
        metavar="NAME",
        help="Names that clients may use for the model; by default CHECKPOINT.",
    )
    parser.add_argument("--engine", choices=ENGINES, default="vllm", help="Engine of the language model.")
    parser.add_argument(
        "--engine-args", type=parse_json_object, default={}, metavar="JSON", help="Fields of vLLM's AsyncEngineArgs."
    )
    parser.add_argument("--device", default="auto", help="Device of the front end: auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", choices=RECOGNITION_DTYPES, default="auto", help=INT8_HELP)
    parser.add_argument("--cache-dir", type=Path, help="Folder for exports; by default ~/.cache/llm-asr/exports.")
    defaults = ServerSettings()
    for name, described in SETTINGS.items():
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{described} By default {default}.",
        )
    parser.add_argument(
        "--cors-origins",
        nargs="+",
        default=[],
        metavar="ORIGIN",
        help="Origins of web pages that may use the server, such as https://example.org, or * for all; by default none.",
    )


def check_packages(engine: str) -> None:
    """
    Raises:
        `ImportError`: If a package for `engine` is not installed. The message says how to install it.
    """
    packages = [*WEB_PACKAGES, *(["vllm"] if engine == "vllm" else [])]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(
            f'`llm-asr serve --engine {engine}` needs {", ".join(missing)}: `pip install "llm-asr[serve]"`'
            + (
                ", and install vLLM for your hardware as docs/serve.md explains; `--engine transformers` does not need it."
                if "vllm" in missing
                else "."
            )
        )


def vllm_dtype(dtype: str, device, folder: Path) -> str:
    """The dtype for vLLM. `"auto"` becomes float32 if the saved dtype is slow on this CPU."""
    from transformers import AutoConfig

    from ..processing.cpu_precision import is_slow_on_cpu

    if dtype == "auto" and device.type == "cpu" and is_slow_on_cpu(AutoConfig.from_pretrained(folder).dtype):
        return "float32"
    return dtype


def make_server(args: argparse.Namespace, settings: ServerSettings):
    """
    Create the [`Server`] and load the front end. Starting the server loads the language model.

    Raises:
        `ValueError`, `OSError`: If the checkpoint cannot be served.
    """
    from transformers import GenerationConfig

    from ..serving.app import Server
    from ..serving.engine import Engine
    from ..serving.export_cache import default_cache, export_cached
    from ..serving.front_end_runner import FrontEndRunner
    from ..serving.metrics import Metrics
    from ..serving.transcriber import Transcriber

    device = choose_device(args.device)
    check_dtype(args.dtype, device)
    if args.dtype == "int8" and args.engine == "vllm":
        raise ValueError(
            "`--dtype int8` is for `--engine transformers`; vLLM has `--engine-args '{\"quantization\": ...}'`."
        )
    names = tuple(args.served_model_name or [args.model])
    with loading(repr(args.model)):
        exported = export_cached(args.model, args.cache_dir or default_cache())
    language_model = exported / "language_model"
    if args.engine == "vllm":
        from ..serving.vllm_engine import VllmEngine

        dtype = vllm_dtype(args.dtype, device, language_model)
        engine: Engine = VllmEngine(language_model, dtype, {"served_model_name": list(names), **args.engine_args})
    else:
        from ..serving.transformers_engine import TransformersEngine

        if args.engine_args:
            raise ValueError("`--engine-args` are for `--engine vllm`; leave them out.")
        engine = TransformersEngine(language_model, args.dtype, device, settings.batch_size, settings.max_requests)
    metrics = Metrics()
    front_end = FrontEndRunner(exported / "front_end", args.dtype, device, settings, metrics.front_end_batch.observe)
    config = GenerationConfig.from_pretrained(language_model)
    temperature = (1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0
    return Server(Transcriber(front_end, engine, settings, metrics), settings, names, temperature)


def _as_option(match: re.Match) -> str:
    """Replace the name of a setting by its option, such as `max_requests` by `--max-requests`."""
    return f"--{match[1].replace('_', '-')}" if match[1] in SETTINGS else match[0]


def run(args: argparse.Namespace) -> int:
    """
    Serve until SIGTERM or SIGINT.

    Raises:
        `UsageError`: If the checkpoint cannot be served or an option is invalid.
    """
    try:
        check_packages(args.engine)
        check_voice_activity(args.vad)
        settings = ServerSettings(
            **{name: getattr(args, name) for name in SETTINGS},
            cors_origins=tuple(args.cors_origins),
            api_key=os.environ.get(API_KEY_VARIABLE),
        )
        server = make_server(args, settings)
    except (ImportError, OSError, ValueError) as error:
        # Messages name settings; the user knows their options.
        raise UsageError(re.sub(r"`([a-z_]+)`", _as_option, str(error))) from error
    if settings.api_key is None and args.host not in LOOPBACK:
        print(
            f"Anyone who can connect to {args.host} can use the server, because {API_KEY_VARIABLE} is not set.",
            file=sys.stderr,
        )

    from ..serving.web_server import WebServer

    web_server = WebServer(server, host=args.host, port=args.port)
    with trimmed_memory():
        web_server.run()
    return 0 if web_server.started else 1
