"""`llm-asr listen`: transcribe a microphone or a pipe while it is spoken."""

import argparse
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import cast

from ..atomic_writing import write_text
from ..memory import trimmed_memory
from ..processing.writing import joint
from ..subtitles import WRITERS, join_words
from .live_text import LiveText
from .options import (
    UsageError,
    add_keyword_arguments,
    add_recognition_arguments,
    check_voice_activity,
    load_config,
    read_keywords,
)
from .transcribe import load_transcriber


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        choices=["-"],
        metavar="-",
        help="Read a pipe in place of the microphone: a file in any format that can be read from its start, or PCM.",
    )
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--device-name", metavar="NAME", help="Number or part of the name of the microphone.")
    parser.add_argument(
        "--pcm-rate",
        type=int,
        metavar="RATE",
        help="The pipe holds raw PCM (mono, signed, 16 bits, little-endian) with this number of samples a second.",
    )
    parser.add_argument("--language", help="Code or English name; by default the model identifies the language.")
    parser.add_argument("--prompt", help="Context for the model, such as names or the subject.")
    add_keyword_arguments(parser)
    parser.add_argument(
        "--latency", type=float, default=1.0, metavar="SECONDS", help="Seconds between transcripts; by default 1."
    )
    parser.add_argument(
        "--encoder",
        choices=["reencode", "cached"],
        default="reencode",
        help="cached encodes speech once, with a model that was trained in chunks; by default reencode.",
    )
    parser.add_argument(
        "--agreement", type=int, default=2, metavar="N", help="Transcripts that must agree on a word; by default 2."
    )
    parser.add_argument(
        "--format",
        choices=list(WRITERS),
        default="txt",
        help="By default txt: text while it is spoken. Other formats are written at the end.",
    )
    parser.add_argument("--output", type=Path, help="File to write at the end; by default the terminal.")
    add_recognition_arguments(parser)


def check_options(args: argparse.Namespace) -> None:
    """
    Raises:
        `UsageError`: If options contradict each other.
    """
    if args.source is None and args.pcm_rate is not None:
        raise UsageError("--pcm-rate is for a pipe: pass - too.")
    if args.source == "-" and args.device_name is not None:
        raise UsageError("--device-name is for the microphone: leave out -.")
    if args.source == "-" and sys.stdin.isatty():
        raise UsageError("- reads a pipe, and there is none: `ffmpeg … | llm-asr listen -`.")
    check_voice_activity(args.vad)


def open_source(args: argparse.Namespace) -> AbstractContextManager:
    """The microphone or the pipe."""
    if args.source == "-":
        from ..live.pipe import open_pipe

        # The annotation of `sys.stdin.buffer` leaves out `read1`.
        return open_pipe(cast(BufferedIOBase, sys.stdin.buffer), args.pcm_rate)
    from ..live.microphone import open_microphone

    name = args.device_name
    return open_microphone(int(name) if name is not None and name.isdecimal() else name)


def make_result(segments: list) -> dict:
    """
    The [`LiveSegment`]s of a stream in the form of the pipeline's results. `chunks` are cues of words or, without CIF, segments.
    """
    text = ""
    seconds: Counter[str | None] = Counter()
    for segment in segments:
        text += joint(text, segment.text) + segment.text
        seconds[segment.language] += segment.end - segment.start
    words = [word for segment in segments for word in segment.words]
    if words and all(word.start is not None for word in words):
        chunks = join_words({"text": word.text, "timestamp": (word.start, word.end)} for word in words)
    else:
        times = [(round(segment.start, 3), round(segment.end, 3)) for segment in segments]
        chunks = [
            {"text": segment.text, "timestamp": time}
            for segment, time in zip(segments, times, strict=True)
            if segment.text
        ]
    return {"text": text, "language": seconds.most_common(1)[0][0] if seconds else None, "chunks": chunks}


@contextmanager
def ended_by_interrupt(source) -> Iterator[None]:
    """Ctrl+C ends the source, so that what was heard is transcribed to its end. A second one interrupts the program."""

    def end(number, frame) -> None:
        signal.signal(signal.SIGINT, before)
        source.blocks.close()

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def listen(stream, source, text: LiveText) -> tuple[list, Exception | None]:
    """
    Transcribe until the source ends or the user interrupts.

    Returns:
        `tuple`: The [`LiveSegment`]s, and the error that has ended the source.
    """
    from ..live.microphone import MicrophoneError

    segments: list = []
    failure: Exception | None = None

    def show(events: list) -> None:
        for event in events:
            text.write(event.committed, event.partial, event.segment is not None)
            if event.segment is not None:
                segments.append(event.segment)

    with ended_by_interrupt(source):
        try:
            for block in source.blocks:
                show(stream.push(block, catch_up=True))
        except (ValueError, MicrophoneError) as error:
            failure = error
        show(stream.finish())
    return segments, failure


def run(args: argparse.Namespace) -> int:
    """
    Transcribe until the source ends or the user presses Ctrl+C; see [`add_arguments`].

    Returns:
        `int`: 0, or 1 if an error has ended the source.

    Raises:
        `UsageError`: If the request is invalid.
    """
    check_options(args)
    load_config(args.model, args.trust_remote_code)
    transcriber = load_transcriber(args)

    from ..live.microphone import MicrophoneError
    from ..live.pipe import PipeError
    from ..live.stream import LlmAsrStream

    writes_later = args.format != "txt" or args.output is not None
    shown = sys.stderr if writes_later else sys.stdout
    columns = shutil.get_terminal_size().columns if shown.isatty() else None
    try:
        with trimmed_memory(), open_source(args) as source:
            stream = LlmAsrStream(
                transcriber.model,
                transcriber.processor,
                language=args.language,
                latency_s=args.latency,
                sampling_rate=source.sampling_rate,
                encoder=args.encoder,
                prompt=args.prompt,
                agreement=args.agreement,
                vad=args.vad,
                keywords=read_keywords(args),
            )
            if args.source is None:
                print("Listening; Ctrl+C ends it.", file=sys.stderr)
            segments, failure = listen(stream, source, LiveText(shown, columns))
    except (ImportError, ValueError, MicrophoneError, PipeError) as error:
        raise UsageError(error) from error
    if writes_later:
        written = WRITERS[args.format](make_result(segments))
        if args.output is None:
            sys.stdout.write(written)
        else:
            write_text(args.output, written)
    if failure is not None:
        print(f"llm-asr listen: error: {failure}", file=sys.stderr)
    return 0 if failure is None else 1
