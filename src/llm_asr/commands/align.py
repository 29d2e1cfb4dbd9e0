"""`llm-asr align`: find the times of the words of a known text in its recording."""

import argparse
from pathlib import Path

from ..atomic_writing import write_text
from .options import UsageError, add_recognition_arguments, check_voice_activity, load_config
from .transcribe import load_transcriber, render


FORMATS = ("tsv", "json", "srt", "vtt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recording", metavar="RECORDING", help="Audio file of any length.")
    parser.add_argument("text", metavar="TEXT", nargs="?", help="What is said in the recording.")
    parser.add_argument("--text-file", type=Path, metavar="FILE", help="UTF-8 file with the text, in place of TEXT.")
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint with CIF.")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="tsv",
        help="By default tsv: a line for each word with its start and end in seconds, its confidence and the word.",
    )
    parser.add_argument("--output", type=Path, help="File to write; by default the terminal.")
    parser.add_argument("--batch-size", type=int, default=8, help="Number of segments in a batch; by default 8.")
    add_recognition_arguments(parser)


def read_text(args: argparse.Namespace) -> str:
    """
    Return the text to align.

    Raises:
        `UsageError`: If there is no text, there are two, or the file cannot be read.
    """
    if (args.text is None) == (args.text_file is None):
        raise UsageError("Pass either TEXT or --text-file.")
    text = args.text
    if args.text_file is not None:
        try:
            text = args.text_file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--text-file {str(args.text_file)!r} cannot be read: {error}") from error
    if not text.strip():
        raise UsageError("The text has no word; pass what is said in the recording.")
    return text


def to_tsv(result: dict) -> str:
    """Start, end, confidence and text of each word, separated by tabs."""
    return "".join(
        f"{start:.3f}\t{end:.3f}\t{chunk['confidence']:.3f}\t{chunk['text']}\n"
        for chunk in result["chunks"]
        for start, end in [chunk["timestamp"]]
    )


def run(args: argparse.Namespace) -> int:
    """
    Align the text; see [`add_arguments`].

    Raises:
        `UsageError`: If there is no such recording, text or checkpoint, or the checkpoint has no CIF.
    """
    if args.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {args.batch_size}.")
    check_voice_activity(args.vad)
    if not Path(args.recording).is_file():
        raise UsageError(f"{args.recording!r} is not a file.")
    text = read_text(args)
    projector_config = load_config(args.model, args.trust_remote_code).projector_config
    if not projector_config.uses_cif:
        raise UsageError(
            "The times of a given text need a projector with CIF ('cif' or 'moe_cif'), but this model's projector is "
            f"{projector_config.projector_type!r}."
        )
    transcriber = load_transcriber(args)
    try:
        result = transcriber(args.recording, text=text, vad=args.vad, batch_size=args.batch_size)
    except ValueError as error:
        raise UsageError(error) from error
    written = to_tsv(result) if args.format == "tsv" else render(result, args.format, "word")
    if args.output is None:
        print(written, end="")
    else:
        write_text(args.output, written)
    return 0
