"""`llm-asr transcribe`: recordings in, files with transcripts out."""

import argparse
import glob
import os
import sys
from pathlib import Path

import soundfile
from tqdm.auto import tqdm

from .processing.voice_activity import VOICE_ACTIVITIES
from .subtitles import WRITERS, join_words


AUDIO_SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} | {".opus", ".oga", ".m4a", ".aif"}
SUBTITLES = ("srt", "vtt")


class UsageError(Exception):
    """What was asked for cannot be done; its message says why, and nothing has been done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="FILE", help="Files, folders, or patterns such as 'talks/**/*.mp3'."
    )
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument(
        "--output-dir", type=Path, help="Folder to write to; without it, one file goes to the terminal."
    )
    parser.add_argument("--format", nargs="+", choices=sorted(WRITERS), default=["txt"], help="One or more.")
    parser.add_argument("--language", help="Code or English name; by default the model finds out.")
    parser.add_argument("--prompt", help="Context, such as names or the subject.")
    parser.add_argument("--timestamps", choices=["segment", "word"], help="Times of segments or, with CIF, of words.")
    parser.add_argument("--batch-size", type=int, default=8, help="Segments that are transcribed together.")
    parser.add_argument(
        "--vad", choices=sorted(VOICE_ACTIVITIES), default="energy", help="What tells speech from silence."
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code that the checkpoint brings.")
    parser.add_argument("--overwrite", action="store_true", help="Transcribe what has been transcribed before, too.")


def find_recordings(inputs: list[str]) -> dict[Path, Path]:
    """
    Files that arguments name, and where their transcripts go below the output folder, without an ending.

    Args:
        inputs (`list[str]`): Files; folders, whose audio files are taken at any depth; and patterns.

    Raises:
        `UsageError`: If an argument names nothing.
    """
    found: dict[Path, Path] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()
            )
            places = [file.relative_to(path) for file in files]
        elif path.is_file():
            files, places = [path], [Path(path.name)]
        else:
            files = sorted(Path(match) for match in glob.glob(name, recursive=True) if os.path.isfile(match))
            # What the pattern leaves open is what tells its files apart.
            root = Path(os.path.commonpath([file.parent for file in files])) if files else path
            places = [file.relative_to(root) for file in files]
        if not files:
            raise UsageError(f"{name!r} is no file, no folder with audio files, and no pattern that matches one.")
        for file, place in zip(files, places, strict=True):
            found.setdefault(file, place.with_suffix(""))
    return found


def plan_outputs(
    recordings: dict[Path, Path], output_dir: Path | None, formats: list[str]
) -> dict[Path, dict[str, Path]]:
    """
    Files to write, by recording and format; none without `output_dir`.

    Raises:
        `UsageError`: If two recordings would write the same file, or several would go to the terminal.
    """
    if output_dir is None:
        if len(recordings) > 1 or len(formats) > 1:
            raise UsageError("Several recordings or formats need a folder to write to: pass --output-dir.")
        return {file: {} for file in recordings}
    takers: dict[Path, Path] = {}
    for file, place in recordings.items():
        if place in takers:
            raise UsageError(
                f"{takers[place]} and {file} would both be written to {output_dir / place}.*; rename one."
            )
        takers[place] = file
    return {
        file: {name: output_dir / place.parent / f"{place.name}.{name}" for name in formats}
        for file, place in recordings.items()
    }


def load_transcriber(args: argparse.Namespace):
    """
    The pipeline that is asked for.

    Raises:
        `UsageError`: If there is no such checkpoint, or it cannot do what is asked.
    """
    # Imported late: `--help` and wrong arguments need no torch.
    import torch
    from transformers import pipeline

    import llm_asr

    device = None
    if args.device != "auto":
        device = args.device
    elif torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator().type
    try:
        transcriber = pipeline(
            "automatic-speech-recognition",
            model=args.model,
            device=device or "cpu",
            dtype=args.dtype,
            trust_remote_code=args.trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"--model {args.model!r} cannot be loaded: {error}") from error
    if not isinstance(transcriber, llm_asr.LlmAsrPipeline):
        raise UsageError(
            f"--model {args.model!r} is a {transcriber.model.config.model_type!r}, and not an LLM-ASR model."
        )
    return transcriber


def write_outputs(result: dict, paths: dict[str, Path], timestamps: str | None) -> None:
    """Write each format, all or nothing of it; to the terminal where there is no path."""
    for name, path in paths.items():
        chunks = join_words(result["chunks"]) if timestamps == "word" and name in SUBTITLES else result.get("chunks")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(
            WRITERS[name]({**result, "chunks": chunks} if chunks is not None else result), encoding="utf-8"
        )
        os.replace(partial, path)


def run(args: argparse.Namespace) -> int:
    """
    Transcribe what `args` name; see [`add_arguments`].

    Returns:
        `int`: 0, or 1 if a recording could not be transcribed.

    Raises:
        `UsageError`: Before anything is transcribed.
    """
    if args.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {args.batch_size}.")
    outputs = plan_outputs(find_recordings(args.inputs), args.output_dir, args.format)
    todo = {
        file: paths
        for file, paths in outputs.items()
        if args.overwrite or not paths or not all(path.exists() for path in paths.values())
    }
    if len(todo) < len(outputs):
        print(
            f"{len(outputs) - len(todo)} of {len(outputs)} transcribed before; --overwrite does it again.",
            file=sys.stderr,
        )
    if not todo:
        return 0

    transcriber = load_transcriber(args)
    options = {"language": args.language, "prompt": args.prompt, "vad": args.vad}
    options["return_timestamps"] = {"word": "word", "segment": True}.get(args.timestamps) or (
        True if set(args.format) & set(SUBTITLES) else None
    )
    options = {name: value for name, value in options.items() if value is not None}
    try:
        transcriber._sanitize_parameters(**options)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error

    failures: dict[Path, str] = {}
    with tqdm(total=len(todo), unit="file", disable=None) as progress:
        for file, paths in todo.items():
            progress.set_postfix_str(file.name)
            try:
                result = {
                    "file": str(file),
                    **transcriber(str(file), batch_size=args.batch_size, progress_bar=sys.stderr.isatty(), **options),
                }
            # Whatever is wrong with one recording, the others are worth having.
            except Exception as error:
                failures[file] = f"{type(error).__name__}: {error}"
                tqdm.write(f"{file}: {failures[file]}", file=sys.stderr)
            else:
                if paths:
                    write_outputs(result, paths, args.timestamps)
                else:
                    name = args.format[0]
                    if args.timestamps == "word" and name in SUBTITLES:
                        result["chunks"] = join_words(result["chunks"])
                    sys.stdout.write(WRITERS[name](result))
            progress.update()
    if failures:
        names = "\n".join(f"  {file}" for file in failures)
        print(f"{len(failures)} of {len(todo)} could not be transcribed:\n{names}", file=sys.stderr)
    return 1 if failures else 0
