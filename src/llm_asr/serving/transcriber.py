"""Transcribes uploaded recordings: sends their segments through the front end and the engine concurrently."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import numpy as np

from ..processing.pipeline_llm_asr import join_pieces
from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.segmentation import Segment
from .engine import Decoding, Engine, EngineDeadError, NewTokens
from .front_end_runner import FrontEndRunner
from .metrics import Metrics
from .recordings import SegmentReader, UnusableRecordingError
from .settings import ServerSettings
from .text_stream import TextStream


# The limit for checkpoints that set none. Without a limit, a transcript that never ends would fill the context.
DEFAULT_MAX_NEW_TOKENS = 1024


class PromptTooLongError(ValueError):
    """Prompt and recording leave no room for a transcript."""


@dataclass
class Request:
    """
    A recording and the settings of its transcription.

    Args:
        recording (`bytes`): Contents of an audio file.
        language (`str`, *optional*): English name of the language.
        prompt (`str`, *optional*): Context for the language model.
        decoding ([`Decoding`]): Decoding settings for the engine.
        keywords (`list[str]`, *optional*): Words that may be spoken.
        target_language (`str`, *optional*): English name of the language to translate into. `None` means transcription.
    """

    recording: bytes
    language: str | None
    prompt: str | None
    decoding: Decoding
    keywords: list[str] | None = None
    target_language: str | None = None


@dataclass
class Transcript:
    """
    Attributes:
        pieces (`list[dict]`): Result of each segment; see [`join_pieces`].
        duration (`float`): Duration of the recording in seconds.
        num_prompt_tokens (`int`): Number of prompt embeddings of all segments.
        num_new_tokens (`int`): Number of generated tokens of all segments.
    """

    pieces: list[dict] = field(default_factory=list)
    duration: float = 0.0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0


@dataclass
class Run:
    """A segment in progress."""

    segment: Segment
    # `None` marks the end.
    tokens: asyncio.Queue[NewTokens | None] = field(default_factory=asyncio.Queue)
    alphas: np.ndarray | None = None
    num_prompt_tokens: int = 0


class Transcriber:
    """
    Args:
        front_end ([`FrontEndRunner`])
        engine ([`Engine`])
        settings ([`ServerSettings`])
        metrics ([`Metrics`])
    """

    def __init__(self, front_end: FrontEndRunner, engine: Engine, settings: ServerSettings, metrics: Metrics):
        self.front_end = front_end
        self.engine = engine
        self.settings = settings
        self.metrics = metrics

    @property
    def processor(self) -> LlmAsrProcessor:
        return self.front_end.processor

    async def start(self) -> None:
        """Load the engine and transcribe a second of noise, so that the first request does not wait for the warm-up."""
        await self.engine.start()
        self.front_end.start()
        noise = np.random.default_rng(0).normal(0, 0.1, self.processor.sampling_rate).astype(np.float32)
        run = Run(Segment(0.0, noise, self.processor.sampling_rate))
        await self._work(run, Request(b"", None, None, Decoding(temperature=0.0)))

    async def stop(self) -> None:
        await self.front_end.stop()
        await self.engine.stop()

    async def check_health(self) -> None:
        """
        Raises:
            `EngineDeadError`: If the front end or the engine has stopped.
        """
        if not self.front_end.batcher.is_running:
            raise EngineDeadError("The front end has stopped; restart the server.")
        await self.engine.check_health()

    async def transcribe(self, request: Request, on_text: Callable[[str], None] | None = None) -> Transcript:
        """
        Transcribe a recording.

        Args:
            request ([`Request`])
            on_text (`Callable[[str], None]`, *optional*): Called with each new part of the text.

        Raises:
            `UnusableRecordingError`: If the upload is not a recording, or the server does not accept it.
            `PromptTooLongError`: If prompt and recording leave no room for a transcript.
            `EngineDeadError`: If the engine has stopped.
        """
        transcript = Transcript()
        reader = SegmentReader(request.recording, self.processor, self.settings.max_recording_s, self.settings.vad)
        stream = TextStream(self.processor)
        runs: asyncio.Queue[Run | None] = asyncio.Queue(self.settings.segments_per_request)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._begin_runs(reader, request, group, runs))
                while (run := await runs.get()) is not None:
                    transcript.pieces.append(await self._finish(run, stream, on_text))
                    transcript.num_prompt_tokens += run.num_prompt_tokens
                    transcript.num_new_tokens += len(transcript.pieces[-1]["tokens"][0])
        except BaseExceptionGroup as errors:
            # The first error is the cause. The group cancelled its other tasks because of it.
            raise errors.exceptions[0] from None
        transcript.duration = reader.duration
        return transcript

    async def transcribe_segment(
        self,
        segment: Segment,
        language: str | None,
        prompt: str | None,
        keywords: list[str] | None,
        decoding: Decoding,
    ) -> tuple[list[int], np.ndarray | None]:
        """
        Transcribe one segment, which must not be longer than the speech encoder's limit.

        Returns:
            `tuple`: New tokens, and CIF weights of shape `(num_frames,)` or `None`.

        Raises:
            `PromptTooLongError`, `EngineDeadError`: See `transcribe`.
        """
        run, ids = Run(segment), []
        await self._work(run, Request(b"", language, prompt, decoding, keywords=keywords))
        while (new := run.tokens.get_nowait()) is not None:
            ids += new.ids
        return ids, run.alphas

    async def _begin_runs(
        self, reader: SegmentReader, request: Request, group: asyncio.TaskGroup, runs: asyncio.Queue
    ) -> None:
        """Read the recording and start a run for each segment. A full `runs` queue pauses the reading."""
        async for segment in iterate_in_thread(reader):
            run = Run(segment)
            await runs.put(run)
            group.create_task(self._work(run, request))
        await runs.put(None)

    async def _work(self, run: Run, request: Request) -> None:
        prompt = await self.front_end.encode(
            run.segment, request.language, request.prompt, request.keywords, request.target_language
        )
        if prompt.max_new_tokens is None:
            prompt = replace(prompt, max_new_tokens=DEFAULT_MAX_NEW_TOKENS)
        run.num_prompt_tokens = len(prompt.inputs_embeds)
        if run.num_prompt_tokens >= self.engine.max_length:
            raise PromptTooLongError(
                f"`prompt` is too long: with keywords and the recording it has {run.num_prompt_tokens} tokens, and the limit of the "
                f"language model is {self.engine.max_length}."
            )
        run.alphas = None if prompt.alphas is None else prompt.alphas.float().cpu().numpy()
        async with aclosing(self.engine.generate(prompt, request.decoding)) as tokens:
            async for new in tokens:
                self.metrics.new_tokens.inc(len(new.ids))
                run.tokens.put_nowait(new)
        run.tokens.put_nowait(None)

    async def _finish(self, run: Run, stream: TextStream, on_text: Callable[[str], None] | None) -> dict:
        ids: list[int] = []
        logprobs: list[float] = []
        no_speech_prob = None
        stream.begin_segment()
        while (new := await run.tokens.get()) is not None:
            ids += new.ids
            logprobs += new.logprobs or []
            if new.no_speech_prob is not None:
                no_speech_prob = new.no_speech_prob
            if on_text is not None and (text := stream.add(new.ids)):
                on_text(text)
        if on_text is not None and (text := stream.end_segment()):
            on_text(text)
        piece: dict = {
            "tokens": [ids],
            "has_speech": True,
            "start": run.segment.start,
            "end": run.segment.end,
        }
        if run.alphas is not None:
            piece["alphas"] = run.alphas[None]
        if logprobs:
            piece["avg_logprobs"] = [sum(logprobs) / len(logprobs)]
            piece["no_speech_probs"] = [no_speech_prob]
        return piece

    def join(
        self, transcript: Transcript, language: str | None, return_timestamps: bool | str, task: str = "transcribe"
    ) -> dict:
        """`{"text", "language", "chunks"}`, as [`LlmAsrPipeline`] returns them."""
        return join_pieces(
            transcript.pieces,
            self.processor,
            frame_period=self.front_end.model.config.projector_frame_period,
            return_timestamps=return_timestamps,
            language=language,
            task=task,
        )


async def iterate_in_thread(iterable) -> AsyncIterator:
    """Iterate over `iterable` in a thread, so that a slow item does not block the event loop."""
    iterator = iter(iterable)
    # A future cannot raise `StopIteration`, so `None` marks the end.
    while (item := await asyncio.to_thread(next, iterator, None)) is not None:
        yield item


__all__ = [
    "PromptTooLongError",
    "Request",
    "Transcriber",
    "Transcript",
    "UnusableRecordingError",
]
