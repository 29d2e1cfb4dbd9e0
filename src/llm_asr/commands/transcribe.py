"""`llm-asr transcribe`: transcribe recordings to text, JSON or subtitle files."""

import argparse
import glob
import itertools
import os
import sys
from pathlib import Path

from tqdm.auto import tqdm

from ..atomic_writing import write_text
from ..memory import trimmed_memory
from ..subtitles import WRITERS, join_words
from .options import (
    UsageError,
    add_keyword_arguments,
    add_recognition_arguments,
    check_dtype,
    check_voice_activity,
    choose_device,
    describe_error,
    load_config,
    loading,
    read_keywords,
)


# Some of these formats cannot be read. Their files are reported as errors instead of being skipped silently.
AUDIO_SUFFIXES = {
    *(".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus"),
    *(".rf64", ".sph", ".w64", ".wav", ".webm", ".wma"),
}
SUBTITLES = ("srt", "vtt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="FILE", help="Files, folders, or patterns such as 'talks/**/*.mp3'."
    )
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument(
        "--output-dir", type=Path, help="Folder for transcripts; without it, one recording is printed on the terminal."
    )
    parser.add_argument(
        "--format", nargs="+", choices=list(WRITERS), default=["txt"], help="One or more formats; by default txt."
    )
    parser.add_argument("--language", help="Code or English name; by default the model identifies the language.")
    parser.add_argument("--prompt", help="Context for the model, such as names or the subject.")
    parser.add_argument(
        "--task", choices=["transcribe", "translate"], default="transcribe", help="By default transcribe."
    )
    parser.add_argument("--target-language", help="Language of the translation, as a code or an English name.")
    add_keyword_arguments(parser)
    parser.add_argument("--timestamps", choices=["segment", "word"], help="Times of segments or, with CIF, of words.")
    parser.add_argument("--batch-size", type=int, default=8, help="Number of segments in a batch; by default 8.")
    add_recognition_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="Transcribe recordings again that have transcripts.")


def find_recordings(inputs: list[str]) -> dict[Path, Path]:
    """
    Find the recordings that arguments name, and the paths of their transcripts in the output folder, without suffix.

    Args:
        inputs (`list[str]`): Files, folders and patterns. Audio files in a folder are found at any depth.

    Raises:
        `UsageError`: If an argument matches no file.
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
            # Only the variable part of the pattern distinguishes its files.
            root = Path(*itertools.takewhile(lambda part: glob.escape(part) == part, path.parts))
            places = [file.relative_to(root) for file in files]
        if not files:
            raise UsageError(f"{name!r} is not a file, a folder with audio files, or a pattern that matches a file.")
        for file, place in zip(files, places, strict=True):
            found.setdefault(file, place.with_suffix(""))
    return found


def plan_outputs(
    recordings: dict[Path, Path], output_dir: Path | None, formats: list[str]
) -> dict[Path, dict[str, Path]]:
    """
    Files to write, by recording and format. Without `output_dir` there are none.

    Raises:
        `UsageError`: If two recordings have the same output file, if there are several outputs for the terminal, or if
            `output_dir` is a file.
    """
    if output_dir is None:
        if len(recordings) > 1 or len(formats) > 1:
            raise UsageError("Several recordings or formats need a folder to write to: pass --output-dir.")
        return {file: {} for file in recordings}
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"--output-dir {str(output_dir)!r} is not a folder.")
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


def check_request(args: argparse.Namespace) -> None:
    """
    Check that the checkpoint supports the request, before reading any weights.

    Raises:
        `UsageError`: If there is no such checkpoint, it has another model type, or it does not support the request.
    """
    from transformers import AutoProcessor

    config = load_config(args.model, args.trust_remote_code)
    with loading(f"--model {args.model!r}"):
        processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    if args.timestamps == "word" and not config.projector_config.uses_cif:
        raise UsageError(
            "--timestamps word needs a projector with CIF ('cif' or 'moe_cif'), but this model's projector is "
            f"{config.projector_config.projector_type!r}; use --timestamps segment."
        )
    if args.timestamps == "word" and args.task == "translate":
        raise UsageError(
            "--timestamps word is of transcripts: the words of a translation are not spoken; use segment."
        )
    try:
        # Rendering the request checks it without reading a recording.
        request = {"language": args.language, "prompt": args.prompt, "keywords": args.keywords}
        request |= {"task": args.task, "target_language": args.target_language}
        processor.apply_transcription_request("", tokenize=False, **request)
    except ValueError as error:
        raise UsageError(error) from error
    except Exception as error:
        # A template is a program and may raise any error.
        raise UsageError(f"The templates of --model {args.model!r} fail: {describe_error(error)}") from error


def load_transcriber(args: argparse.Namespace):
    """
    Load the pipeline of `--model`.

    Raises:
        `UsageError`: If the checkpoint cannot be loaded.
    """
    from transformers import pipeline

    from .. import registration  # noqa: F401 (registers the model with the `Auto` classes)
    from ..processing.cpu_precision import loaded_dtype, set_dtype

    device = choose_device(args.device)
    check_dtype(args.dtype, device)
    with loading(f"--model {args.model!r}"):
        transcriber = pipeline(
            "automatic-speech-recognition",
            model=args.model,
            device=device,
            dtype=loaded_dtype(args.dtype),
            trust_remote_code=args.trust_remote_code,
        )
        set_dtype(transcriber.model, args.dtype)
    return transcriber


def render(result: dict, name: str, timestamps: str | None) -> str:
    """Write a result of the pipeline in the format `name`."""
    if name in SUBTITLES and timestamps == "word":
        result = {**result, "chunks": join_words(result["chunks"])}
    return WRITERS[name](result)


def write_outputs(result: dict, paths: dict[str, Path], timestamps: str | None) -> None:
    """Write each format atomically."""
    for name, path in paths.items():
        write_text(path, render(result, name, timestamps))


def wanted_timestamps(args: argparse.Namespace) -> bool | str:
    """The pipeline's `return_timestamps`. Subtitles need times even without `--timestamps`."""
    if args.timestamps == "word":
        return "word"
    return args.timestamps == "segment" or any(name in SUBTITLES for name in args.format)


def shown(file: Path) -> str:
    """The name of a file as text. Bytes that are not UTF-8 are replaced."""
    return os.fsencode(file).decode("utf-8", "replace")


def duration(file: Path) -> float:
    """Duration in seconds; 0 if the file cannot be read, which is reported when it is transcribed."""
    from ..processing.audio import read_duration

    try:
        return read_duration(file) or 0.0
    except ImportError:
        return 0.0


def transcribe(transcriber, todo: dict[Path, dict[str, Path]], options: dict, args: argparse.Namespace) -> list[Path]:
    """Transcribe and write one recording after the other, report errors, and return the recordings that failed."""
    failures = []
    seconds = {file: duration(file) for file in todo}
    done = 0.0
    with tqdm(total=round(sum(seconds.values())), unit="s", disable=None) as progress:
        for number, (file, paths) in enumerate(todo.items(), start=1):
            progress.set_postfix_str(f"{number}/{len(todo)} {shown(Path(file.name))}")
            try:
                result = {"file": shown(file), **transcriber(str(file), **options)}
                if paths:
                    write_outputs(result, paths, args.timestamps)
                else:
                    # `tqdm.write` keeps the progress bar and the text apart on a terminal.
                    tqdm.write(render(result, args.format[0], args.timestamps), file=sys.stdout, end="")
            # An error of one recording must not stop the others.
            except Exception as error:
                failures.append(file)
                tqdm.write(f"{shown(file)}: {type(error).__name__}: {error}", file=sys.stderr)
            done += seconds[file]
            progress.update(round(done) - progress.n)
    return failures


def run(args: argparse.Namespace) -> int:
    """
    Transcribe the recordings; see [`add_arguments`].

    Returns:
        `int`: 0, or 1 if a recording could not be transcribed.

    Raises:
        `UsageError`: If the request is invalid. Nothing has been transcribed then.
    """
    if args.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {args.batch_size}.")
    check_voice_activity(args.vad)
    outputs = plan_outputs(find_recordings(args.inputs), args.output_dir, args.format)
    todo = {
        file: paths
        for file, paths in outputs.items()
        if args.overwrite or not paths or not all(path.is_file() for path in paths.values())
    }
    if len(todo) < len(outputs):
        print(
            f"{len(outputs) - len(todo)} of {len(outputs)} recordings have transcripts; use --overwrite to transcribe again.",
            file=sys.stderr,
        )
    if not todo:
        return 0

    args.keywords = read_keywords(args)
    check_request(args)
    options = {
        "language": args.language,
        "prompt": args.prompt,
        "keywords": args.keywords,
        "task": args.task,
        "target_language": args.target_language,
        "vad": args.vad,
        "batch_size": args.batch_size,
        "progress_bar": sys.stderr.isatty(),
        "return_timestamps": wanted_timestamps(args),
    }
    with trimmed_memory():
        failures = transcribe(load_transcriber(args), todo, options, args)
    if failures:
        names = "\n".join(f"  {shown(file)}" for file in failures)
        print(f"{len(failures)} of {len(todo)} could not be transcribed:\n{names}", file=sys.stderr)
    return 1 if failures else 0
