"""A realtime transcription session: turns the client's audio into items with transcripts."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..live.transcript import LiveTranscript, Pass
from ..processing.waveforms import check_waveform, open_resampler
from ..processing.writing import joint
from .engine import Decoding, EngineDeadError
from .realtime_events import TRANSCRIPTION, make_error, make_event, make_item, new_id
from .realtime_settings import EventError, RealtimeSettings
from .settings import ServerSettings
from .transcriber import PromptTooLongError, Transcriber


logger = logging.getLogger(__name__)

# Seconds of audio that wait. More is read from the connection only when there is room, so that a fast client waits.
MAX_WAITING_S = 10.0


@dataclass
class Action:
    """Something to be done in order with the audio. `cause` is the `event_id` of the client's event."""

    run: Callable[[], Awaitable[None]]
    cause: str | None


@dataclass
class Item:
    """
    Audio that gets one transcript: a segment of speech or, without turn detection, what the client commits.

    Attributes:
        previous_id (`str`, *optional*): Id of the item before it.
        id (`str`): Its id.
        texts (`list[str]`): Texts of its finished segments.
        has_delta (`bool`): Whether a part of the text was sent.
        error (`str`, *optional*): Why the transcription has failed.
    """

    previous_id: str | None
    id: str = field(default_factory=lambda: new_id("item"))
    texts: list[str] = field(default_factory=list)
    has_delta: bool = False
    error: str | None = None


class RealtimeSession:
    """
    The state of one client's session.

    The receiver of the client's events calls the methods `append`, `commit`, `clear`, `update` and `end`, which queue what is to
    be done. `run` does it in order.

    Args:
        transcriber ([`Transcriber`]): The server's.
        settings ([`ServerSettings`]): The server's.
        options ([`RealtimeSettings`]): The client's first settings.
        send (`Callable[[dict], Awaitable[None]]`): Sends an event.
        is_beta (`bool`): Whether the client speaks the beta version of the API.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        settings: ServerSettings,
        options: RealtimeSettings,
        send: Callable[[dict], Awaitable[None]],
        is_beta: bool,
    ):
        self.transcriber = transcriber
        self.settings = settings
        self.options = options
        self.send = send
        self.is_beta = is_beta
        self._queued: deque[np.ndarray | Action] = deque()
        self._queued_s = 0.0
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_ending = False
        # The rest is used by `run` alone.
        self._current = options
        self._num_samples = 0
        self._item: Item | None = None
        self._last_item_id: str | None = None
        self._is_committing = False
        # Ends of audio in seconds, and when it has arrived.
        self._arrivals: deque[tuple[float, float]] = deque()
        self._resampler: Any = None
        self._transcript = self._make_transcript(options, 0)

    def update(self, options: RealtimeSettings, kind: str, cause: str | None) -> None:
        """
        Queue new settings, which apply to the audio that follows. Speech that is not finished becomes an item before.

        Args:
            options ([`RealtimeSettings`]): All settings.
            kind (`str`): Type of the event that confirms them.
            cause (`str`, *optional*): `event_id` of the client's event.

        Raises:
            [`EventError`]: If a setting does not fit the model.
        """
        processor = self.transcriber.processor
        try:
            processor.language_name(options.language)
        except ValueError as error:
            raise EventError(str(error), "language", "unsupported_language") from error
        try:
            processor.apply_transcription_request("", prompt=options.prompt, tokenize=False)
        except ValueError as error:
            raise EventError(str(error), "prompt") from error
        try:
            processor.apply_transcription_request("", keywords=options.keywords, tokenize=False)
        except ValueError as error:
            raise EventError(str(error), "keywords") from error
        try:
            self._make_transcript(options, 0)
        except ValueError as error:
            raise EventError(str(error), "turn_detection") from error
        self.options = options
        self._queue(Action(lambda: self._update(options, kind), cause))

    async def append(self, samples: np.ndarray) -> None:
        """
        Queue audio, and wait while too much of it waits.

        Args:
            samples (`np.ndarray` of shape `(num_samples,)`, int16): Samples at the rate of the settings.
        """
        if len(samples):
            self._queued_s += len(samples) / self.options.rate
            self._queue(samples)
        if self._queued_s > MAX_WAITING_S:
            self._has_room.clear()
        await self._has_room.wait()

    def commit(self, cause: str | None) -> None:
        """Queue the end of the item."""
        self._queue(Action(self._commit, cause))

    def clear(self, cause: str | None) -> None:
        """Queue the removal of audio that has no final transcript yet."""
        self._queue(Action(self._clear, cause))

    def end(self) -> None:
        """End the session when all that is queued is done and the last speech is transcribed."""
        self._is_ending = True
        self._changed.set()

    async def run(self) -> None:
        """
        Do what is queued until the session ends.

        Raises:
            `EngineDeadError`: If the engine has stopped.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._queued:
                if isinstance(action := self._queued[0], Action):
                    self._queued.popleft()
                    try:
                        await action.run()
                    except EventError as error:
                        await self.send(make_error(error.message, error.param, error.code, action.cause))
                else:
                    self._add_queued()
                    await self._hear()
            if self._is_ending and not self._queued:
                await self._finish()
                return

    def _queue(self, action: np.ndarray | Action) -> None:
        self._queued.append(action)
        self._changed.set()

    def _make_transcript(self, options: RealtimeSettings, start: int) -> LiveTranscript:
        return LiveTranscript(
            self.transcriber.processor,
            self.transcriber.front_end.model.config.projector_frame_period,
            options.live_settings(self.settings.vad),
            start,
        )

    def _add_queued(self) -> None:
        """Add the audio that has arrived to the transcript."""
        parts = []
        while self._queued and isinstance(part := self._queued[0], np.ndarray):
            parts.append(part)
            self._queued.popleft()
        samples = np.concatenate(parts)
        self._num_samples += len(samples)
        self._queued_s = max(0.0, self._queued_s - len(samples) / self._current.rate)
        self.transcriber.metrics.audio_seconds.inc(len(samples) / self._current.rate)
        waveform = check_waveform(samples)
        if self._current.rate != self.transcriber.processor.sampling_rate:
            if self._resampler is None:
                self._resampler = open_resampler(self._current.rate, self.transcriber.processor.sampling_rate)
            waveform = self._resampler.resample_chunk(waveform)
        self._transcript.add(waveform)
        heard_s = self._transcript.heard_until / self.transcriber.processor.sampling_rate
        self._arrivals.append((heard_s + self._transcript.waiting_s, time.monotonic()))
        self.transcriber.metrics.realtime_lag.observe(self._transcript.waiting_s)

    async def _hear(self) -> None:
        """Transcribe what is due in the audio that was added."""
        while (given := await asyncio.to_thread(self._transcript.next_pass, True)) is not None:
            # The audio has been heard, so that there is room for more.
            self._has_room.set()
            await self._transcribe(given)
        self._has_room.set()
        if self._current.turn_detection is not None and self._transcript.speech_start is not None:
            await self._begin_item(self._transcript.speech_start)

    async def _transcribe(self, given: Pass) -> None:
        item = await self._begin_item(given.segment.start)
        is_turn = self._current.turn_detection is not None
        if given.is_last and is_turn:
            await self._commit_item(item, given.segment.end)
        try:
            ids, alphas = await self.transcriber.transcribe_segment(
                given.segment, given.language, given.prompt, given.keywords, Decoding(temperature=0.0)
            )
            event = self._transcript.take(given, ids, alphas)
        except EngineDeadError:
            raise
        except Exception as error:
            self._transcript.drop(given)
            if not isinstance(error, PromptTooLongError):
                logger.exception("A segment of a stream could not be transcribed.")
            if given.is_last:
                # Other details go to the log only: they may contain parts of a transcript.
                is_known = isinstance(error, PromptTooLongError)
                item.error = str(error) if is_known else "The server failed to transcribe it; its log says why."
        else:
            if event is not None and event.committed:
                await self._send_delta(item, event.committed)
            if event is not None and event.segment is not None:
                item.texts.append(event.segment.text)
            self._note_latency(given.segment.end)
        if given.is_last and is_turn:
            await self._complete_item(item, given.segment.end - given.segment.start)

    async def _begin_item(self, start: float) -> Item:
        """The open item. A new one begins at `start` seconds."""
        if self._item is None:
            self._item = Item(self._last_item_id)
            if self._current.turn_detection is not None:
                await self.send(
                    make_event(
                        "input_audio_buffer.speech_started",
                        audio_start_ms=round(1000 * start),
                        item_id=self._item.id,
                    )
                )
        return self._item

    async def _commit_item(self, item: Item, end: float) -> None:
        """Tell that the audio of an item has ended, at `end` seconds."""
        if self._current.turn_detection is not None and not self._is_committing:
            await self.send(
                make_event("input_audio_buffer.speech_stopped", audio_end_ms=round(1000 * end), item_id=item.id)
            )
        before = {"previous_item_id": item.previous_id}
        await self.send(make_event("input_audio_buffer.committed", item_id=item.id, **before))
        kind = "conversation.item.created" if self.is_beta else "conversation.item.added"
        await self.send(make_event(kind, item=make_item(item.id), **before))
        self._last_item_id = item.id

    async def _complete_item(self, item: Item, seconds: float) -> None:
        self._item = None
        fields = {"item_id": item.id, "content_index": 0}
        if item.error is not None:
            error = {"type": "server_error", "code": "transcription_failed", "message": item.error, "param": None}
            await self.send(make_event(f"{TRANSCRIPTION}.failed", error=error, **fields))
            return
        transcript = join_texts(item.texts)
        usage = {"type": "duration", "seconds": round(seconds, 3)}
        await self.send(make_event(f"{TRANSCRIPTION}.completed", transcript=transcript, usage=usage, **fields))
        if not self.is_beta:
            done = {"item": make_item(item.id, transcript), "previous_item_id": item.previous_id}
            await self.send(make_event("conversation.item.done", **done))

    async def _send_delta(self, item: Item, text: str) -> None:
        delta = text if item.has_delta else text.lstrip()
        item.has_delta = True
        await self.send(make_event(f"{TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=delta))

    def _note_latency(self, end: float) -> None:
        """Observe the time from the arrival of the audio at `end` seconds until now."""
        arrived = None
        while self._arrivals and self._arrivals[0][0] <= end:
            arrived = self._arrivals.popleft()[1]
        if arrived is not None:
            self.transcriber.metrics.realtime_latency.observe(time.monotonic() - arrived)

    async def _flush(self, is_commit: bool) -> None:
        """
        Transcribe the audio to its end. The following audio begins a new transcript.

        Args:
            is_commit (`bool`): Whether the client commits the audio, which makes an item of it even without speech.
        """
        self._is_committing = is_commit
        if self._resampler is not None:
            self._transcript.add(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
        self._transcript.end()
        before = self._last_item_id
        await self._hear()
        end = self._transcript.heard_until
        if self._item is not None or (is_commit and self._last_item_id == before):
            item = self._item or Item(before)
            await self._commit_item(item, end / self.transcriber.processor.sampling_rate)
            await self._complete_item(item, self._num_samples / self._current.rate)
        self._is_committing = False
        await self._restart(end)

    async def _restart(self, start: int) -> None:
        self._item = self._resampler = None
        self._num_samples = 0
        self._transcript = await asyncio.to_thread(self._make_transcript, self._current, start)

    async def _update(self, options: RealtimeSettings, kind: str) -> None:
        await self._finish()
        self._current = options
        await self._restart(self._transcript.heard_until)
        session = options.as_beta_session() if kind.startswith("transcription_session") else options.as_session()
        await self.send(make_event(kind, session=session))

    async def _commit(self) -> None:
        if not self._num_samples:
            raise EventError("There is no audio to commit.", code="input_audio_buffer_commit_empty")
        await self._flush(is_commit=True)

    async def _clear(self) -> None:
        waiting = round(self._transcript.waiting_s * self.transcriber.processor.sampling_rate)
        await self._restart(self._transcript.heard_until + waiting)
        await self.send(make_event("input_audio_buffer.cleared"))

    async def _finish(self) -> None:
        """Make an item of the speech or, without turn detection, of the audio that has none yet."""
        if self._num_samples:
            await self._flush(is_commit=self._current.turn_detection is None)


def join_texts(texts: list[str]) -> str:
    """Join the texts of segments."""
    text = ""
    for one in texts:
        text += joint(text, one) + one
    return text


__all__ = ["RealtimeSession"]
