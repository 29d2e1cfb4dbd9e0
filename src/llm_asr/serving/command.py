"""`llm-asr serve`: an OpenAI-compatible transcription server."""

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ..transcribing import DTYPES, UsageError, choose_device
from .settings import ENGINES, ServerSettings


# Anyone on the machine can read the arguments of a program, and its environment only its owner.
API_KEY_VARIABLE = "LLM_ASR_API_KEY"

WEB_PACKAGES = ("prometheus_client", "python_multipart", "starlette", "uvicorn")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

# Options of the command that are fields of `ServerSettings`, and their help.
SETTINGS = {
    "max_requests": "Requests at a time; others are answered with 429.",
    "max_upload_mb": "Largest file, in MiB.",
    "max_recording_s": "Longest recording, in seconds.",
    "upload_timeout_s": "Seconds in which a client must have sent its request.",
    "batch_size": "Segments that go through the front end together.",
    "batch_seconds": "Seconds of audio that do, padding included.",
    "batch_wait_ms": "Milliseconds that a segment waits for others.",
    "segments_per_request": "Segments of one recording that are worked on at a time.",
    "vad": "What tells speech from silence.",
    "drain_s": "Seconds that requests have to be finished in after SIGTERM.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="CHECKPOINT", help="Folder or Hub id of a checkpoint, or of an adapter.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on; by default this machine alone.")
    parser.add_argument("--port", type=int, default=8000, help="By default 8000.")
    parser.add_argument(
        "--served-model-name",
        nargs="+",
        metavar="NAME",
        help="What clients may call the model; by default CHECKPOINT.",
    )
    parser.add_argument("--engine", choices=ENGINES, default="vllm", help="What runs the language model.")
    parser.add_argument(
        "--engine-args", type=json.loads, default={}, metavar="JSON", help="Fields of vLLM's AsyncEngineArgs."
    )
    parser.add_argument("--device", default="auto", help="Of the front end: auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="Of the weights; by default as saved.")
    parser.add_argument("--cache-dir", type=Path, help="Where exports are kept; by default ~/.cache/llm-asr/exports.")
    defaults = ServerSettings()
    for name, described in SETTINGS.items():
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{described} By default {default}.",
        )


def check_packages(engine: str) -> None:
    """
    Raises:
        `ImportError`: If what `engine` needs is not installed; the message says how to.
    """
    packages = [*WEB_PACKAGES, *(["vllm"] if engine == "vllm" else [])]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(
            f'`llm-asr serve --engine {engine}` needs {", ".join(missing)}: `pip install "llm-asr[serve]"`'
            + (
                ", and vLLM as docs/serving.md says for your hardware; `--engine transformers` does without."
                if "vllm" in missing
                else "."
            )
        )


def make_server(args: argparse.Namespace, settings: ServerSettings):
    """
    The [`Server`] that is asked for; nothing but the front end is loaded yet.

    Raises:
        `ValueError`, `OSError`: If the checkpoint cannot be served.
    """
    from transformers import GenerationConfig

    from .app import Server
    from .export_cache import default_cache, export_cached
    from .front_end_runner import FrontEndRunner
    from .metrics import Metrics
    from .transcriber import Transcriber

    device = choose_device(args.device)
    names = tuple(args.served_model_name or [args.model])
    exported = export_cached(args.model, args.cache_dir or default_cache())
    language_model = exported / "language_model"
    if args.engine == "vllm":
        from .vllm_engine import VllmEngine

        engine = VllmEngine(language_model, args.dtype, {"served_model_name": list(names), **args.engine_args})
    else:
        from .transformers_engine import TransformersEngine

        if args.engine_args:
            raise ValueError("`--engine-args` are for vLLM.")
        engine = TransformersEngine(language_model, args.dtype, device, settings.batch_size, settings.max_requests)
    metrics = Metrics()
    front_end = FrontEndRunner(exported / "front_end", args.dtype, device, settings, metrics.front_end_batch.observe)
    config = GenerationConfig.from_pretrained(language_model)
    temperature = (1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0
    return Server(Transcriber(front_end, engine, settings, metrics), settings, names, temperature)


def run(args: argparse.Namespace) -> int:
    """
    Serve until SIGTERM or SIGINT.

    Raises:
        `UsageError`: If what is asked for cannot be served.
    """
    try:
        check_packages(args.engine)
        settings = ServerSettings(
            **{name: getattr(args, name) for name in SETTINGS}, api_key=os.environ.get(API_KEY_VARIABLE)
        )
        server = make_server(args, settings)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(error) from error
    if settings.api_key is None and args.host not in LOOPBACK:
        print(f"Anyone who reaches {args.host} may transcribe: no {API_KEY_VARIABLE} is set.", file=sys.stderr)

    import uvicorn

    config = uvicorn.Config(
        server.make_app(), host=args.host, port=args.port, timeout_graceful_shutdown=int(settings.drain_s)
    )
    web_server = uvicorn.Server(config)
    web_server.run()
    return 0 if web_server.started else 1
