"""`llm-asr transcribe`: recordings in, files with transcripts out."""

import argparse
import glob
import itertools
import os
import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoProcessor, pipeline

from .processing.audio import read_duration
from .processing.voice_activity import VOICE_ACTIVITIES
from .subtitles import WRITERS, join_words


# Not all of them can be read; a recording that cannot is to be named rather than passed over.
AUDIO_SUFFIXES = {
    *(".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus"),
    *(".rf64", ".sph", ".w64", ".wav", ".webm", ".wma"),
}
SUBTITLES = ("srt", "vtt")
DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    parser.add_argument(
        "--format", nargs="+", choices=list(WRITERS), default=["txt"], help="One or more; by default txt."
    )
    parser.add_argument("--language", help="Code or English name; by default the model finds out.")
    parser.add_argument("--prompt", help="Context, such as names or the subject.")
    parser.add_argument("--timestamps", choices=["segment", "word"], help="Times of segments or, with CIF, of words.")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="Segments that are transcribed together; by default 8."
    )
    parser.add_argument(
        "--vad", choices=sorted(VOICE_ACTIVITIES), default="energy", help="What tells speech from silence."
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="Of the weights; by default as saved.")
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
            root = Path(*itertools.takewhile(lambda part: glob.escape(part) == part, path.parts))
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
        `UsageError`: If two recordings would write the same file, several would go to the terminal, or `output_dir` is no
            folder.
    """
    if output_dir is None:
        if len(recordings) > 1 or len(formats) > 1:
            raise UsageError("Several recordings or formats need a folder to write to: pass --output-dir.")
        return {file: {} for file in recordings}
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"--output-dir {str(output_dir)!r} is no folder.")
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
    Make sure, before any weights are read, that the checkpoint can do what is asked.

    Raises:
        `UsageError`: If there is no such checkpoint, it is of another family, or it cannot do what is asked.
    """
    try:
        config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
        if config.model_type != "llm_asr":
            raise ValueError(f"it is a {config.model_type!r} and not an LLM-ASR model.")
        processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {args.model!r} cannot be loaded: {error}") from error
    if args.timestamps == "word" and not config.projector_config.uses_cif:
        raise UsageError(
            "--timestamps word needs a projector with CIF ('cif' or 'moe_cif'), and this model's is "
            f"{config.projector_config.projector_type!r}; use --timestamps segment."
        )
    try:
        # The prompt is rendered, and the recording is not read.
        processor.apply_transcription_request("", language=args.language, prompt=args.prompt, tokenize=False)
        VOICE_ACTIVITIES[args.vad](processor.sampling_rate)
    except (ImportError, ValueError) as error:
        raise UsageError(error) from error


def choose_device(name: str) -> torch.device:
    """
    The device of that name; for `"auto"` an accelerator, if there is one.

    Raises:
        `UsageError`: If it is not there.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        # Only its use tells whether a device is there; without CUDA that is an `AssertionError`.
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"--device {name!r} cannot be used: {error}") from error


def load_transcriber(args: argparse.Namespace):
    """
    The pipeline that is asked for.

    Raises:
        `UsageError`: If it cannot be loaded.
    """
    device = choose_device(args.device)
    try:
        return pipeline(
            "automatic-speech-recognition",
            model=args.model,
            device=device,
            dtype=args.dtype,
            trust_remote_code=args.trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"--model {args.model!r} cannot be loaded: {error}") from error


def render(result: dict, name: str, timestamps: str | None) -> str:
    """A result of the pipeline in the format of that name."""
    if name in SUBTITLES and timestamps == "word":
        result = {**result, "chunks": join_words(result["chunks"])}
    return WRITERS[name](result)


def write_outputs(result: dict, paths: dict[str, Path], timestamps: str | None) -> None:
    """Write each format, all or nothing of it."""
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(render(result, name, timestamps), encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def wanted_timestamps(args: argparse.Namespace) -> bool | str:
    """What to ask of the pipeline: subtitles have times even if `args` ask for none."""
    if args.timestamps == "word":
        return "word"
    return args.timestamps == "segment" or any(name in SUBTITLES for name in args.format)


def duration(file: Path) -> float:
    """Seconds, or 0 where the file cannot be read, which is told when it is its turn."""
    try:
        return read_duration(file) or 0.0
    except ImportError:
        return 0.0


def transcribe(transcriber, todo: dict[Path, dict[str, Path]], options: dict, args: argparse.Namespace) -> list[Path]:
    """Transcribe and write one recording after the other; returns those that failed, which are told as they do."""
    failures = []
    seconds = {file: duration(file) for file in todo}
    done = 0.0
    with tqdm(total=round(sum(seconds.values())), unit="s", disable=None) as progress:
        for number, (file, paths) in enumerate(todo.items(), start=1):
            progress.set_postfix_str(f"{number}/{len(todo)} {file.name}")
            try:
                result = {"file": str(file), **transcriber(str(file), **options)}
                if paths:
                    write_outputs(result, paths, args.timestamps)
                else:
                    # Past the bar, where both are on one terminal.
                    tqdm.write(render(result, args.format[0], args.timestamps), file=sys.stdout, end="")
            # Whatever is wrong with one recording, the others are worth having.
            except Exception as error:
                failures.append(file)
                tqdm.write(f"{file}: {type(error).__name__}: {error}", file=sys.stderr)
            done += seconds[file]
            progress.update(round(done) - progress.n)
    return failures


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

    check_request(args)
    options = {
        "language": args.language,
        "prompt": args.prompt,
        "vad": args.vad,
        "batch_size": args.batch_size,
        "progress_bar": sys.stderr.isatty(),
        "return_timestamps": wanted_timestamps(args),
    }
    failures = transcribe(load_transcriber(args), todo, options, args)
    if failures:
        names = "\n".join(f"  {file}" for file in failures)
        print(f"{len(failures)} of {len(todo)} could not be transcribed:\n{names}", file=sys.stderr)
    return 1 if failures else 0
