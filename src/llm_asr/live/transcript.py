"""The state of a live transcription, without the model: what to transcribe next, and what its result changes."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.segmentation import Segment
from ..processing.writing import joint, split_units
from .agreement import Agreement
from .events import LiveEvent, LiveSegment, LiveWord
from .segmenter import LiveSegmenter


# Cost and latency of a segment grow with its length.
DEFAULT_MAX_SEGMENT_S = 15.0

# More frequent passes would hear almost the same audio.
MIN_LATENCY_S = 0.2


@dataclass
class LiveSettings:
    """
    Options of a live transcription.

    Args:
        language (`str`, *optional*): Code or English name. By default the model identifies the language of each segment.
        prompt (`str`, *optional*): Context, such as names or the subject.
        latency_s (`float`, *optional*, defaults to 1.0): Seconds of new audio in the unfinished segment before it is
            transcribed again.
        agreement (`int`, *optional*, defaults to 2): Consecutive hypotheses that must agree on a word to commit it; see
            [`Agreement`]. With `None`, words are committed when their segment is finished.
        max_segment_s (`float`, *optional*): Longest segment in seconds. Defaults to 15, or to the speech encoder's limit if
            that is less.
        min_silence_s (`float`, *optional*, defaults to 0.5): Shortest silence in seconds that finishes a segment.
        vad (`str`, *optional*, defaults to `"energy"`): Voice activity detection; see [`split_at_silences`].
        keywords (`list[str]`, *optional*): Words that may be spoken.
        lead_s (`float`, *optional*, defaults to 0.2): Silence in seconds that a segment keeps before its speech.
        threshold (`float`, *optional*, defaults to 0.5): From 0 to 1; with a higher one, speech must be louder or clearer.

    Raises:
        `ValueError`: If an option has an invalid value.
    """

    language: str | None = None
    prompt: str | None = None
    latency_s: float = 1.0
    agreement: int | None = 2
    max_segment_s: float | None = None
    min_silence_s: float = 0.5
    vad: str = "energy"
    keywords: list[str] | None = None
    lead_s: float = 0.2
    threshold: float = 0.5

    def __post_init__(self):
        if not MIN_LATENCY_S <= self.latency_s < math.inf:
            raise ValueError(f"`latency_s` must be finite and at least {MIN_LATENCY_S}, got {self.latency_s}.")
        if self.agreement is not None and (
            isinstance(self.agreement, bool) or not isinstance(self.agreement, int) or self.agreement < 1
        ):
            raise ValueError(f"`agreement` must be a whole number from 1 up, or None, got {self.agreement!r}.")

    def longest_segment(self, processor: LlmAsrProcessor) -> float:
        """
        Longest segment in seconds.

        Raises:
            `ValueError`: If `max_segment_s` is above the speech encoder's limit.
        """
        limit = math.inf
        if processor.max_audio_samples is not None:
            limit = processor.max_audio_samples / processor.sampling_rate
        if self.max_segment_s is None:
            return min(DEFAULT_MAX_SEGMENT_S, limit)
        if self.max_segment_s > limit:
            raise ValueError(
                f"`max_segment_s` is {self.max_segment_s}, but the limit of the speech encoder is {limit:g} s; make it smaller."
            )
        return self.max_segment_s


@dataclass
class Pass:
    """
    A segment to transcribe.

    Attributes:
        segment ([`Segment`]): The segment, at the model's sampling rate.
        is_last (`bool`): Whether the segment is finished.
        draft_ids (`list[int]`): Tokens of the previous hypothesis of the segment, without an end-of-sequence token.
        language, prompt (`str`, *optional*), keywords (`list[str]`, *optional*): See [`LiveSettings`].
    """

    segment: Segment
    is_last: bool
    draft_ids: list[int]
    language: str | None
    prompt: str | None
    keywords: list[str] | None


class LiveTranscript:
    """
    The state of a live transcription.

    The caller alternates between [`~LiveTranscript.next_pass`], the model, and [`~LiveTranscript.take`]. A process with many
    transcripts can so transcribe the passes of all of them in one batch. Memory is bounded by the longest segment and by the
    audio that waits.

    Args:
        processor ([`LlmAsrProcessor`]): The model's processor.
        frame_period (`float`): Seconds between consecutive CIF weights, `model.config.projector_frame_period`.
        settings ([`LiveSettings`], *optional*): Options.
        start (`int`, *optional*, defaults to 0): Number of the first sample, at the model's sampling rate.

    Raises:
        `ValueError`: If an option has an invalid value, or does not fit the model.
        `ImportError`: See [`split_at_silences`].
    """

    def __init__(
        self,
        processor: LlmAsrProcessor,
        frame_period: float,
        settings: LiveSettings | None = None,
        start: int = 0,
    ):
        self.processor = processor
        self.frame_period = frame_period
        self.settings = settings = settings or LiveSettings()
        self.language = processor.language_name(settings.language)
        # Rendering the request checks it without reading a recording.
        processor.apply_transcription_request("", prompt=settings.prompt, keywords=settings.keywords, tokenize=False)
        self.segmenter = LiveSegmenter(
            processor.sampling_rate,
            settings.longest_segment(processor),
            settings.min_silence_s,
            settings.vad,
            settings.lead_s,
            settings.threshold,
            start,
        )
        self._waiting: deque[np.ndarray] = deque()
        self._num_waiting = 0
        self._is_ending = self._has_ended = False
        self._finished: deque[Segment] = deque()
        # The last committed word, which decides whether a space comes before the next one.
        self._last_word = ""
        self._begin_segment()

    def _begin_segment(self) -> None:
        self._agreement = Agreement(self.settings.agreement)
        self._draft_ids: list[int] = []
        self._passed_until = 0
        self._partial = ""

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that were added and not heard yet."""
        return self._num_waiting / self.processor.sampling_rate

    @property
    def heard_until(self) -> int:
        """Number of the first sample that was not heard yet."""
        return self.segmenter.end

    @property
    def speech_start(self) -> float | None:
        """Start of the unfinished segment in seconds. `None` while there is silence."""
        start = self.segmenter.open_start
        return None if start is None else start / self.processor.sampling_rate

    def count_certain_samples(self, segment: Segment) -> int:
        """How many samples of the unfinished segment it will keep, unless it is cut at its longest."""
        rules = self.segmenter.rules
        end = self.segmenter.speech_end + rules.padding * rules.frame_length
        return end - round(segment.start * self.processor.sampling_rate)

    def add(self, samples: np.ndarray) -> None:
        """Add samples of shape `(num_samples,)`, float32, at the model's sampling rate."""
        if len(samples):
            self._waiting.append(samples)
            self._num_waiting += len(samples)

    def end(self) -> None:
        """The stream ends with the samples that were added. The unfinished segment is finished."""
        self._is_ending = True

    def next_pass(self, catch_up: bool = False) -> Pass | None:
        """
        Hear the samples that wait until something is to be transcribed.

        Args:
            catch_up (`bool`, *optional*, defaults to `False`): Whether to hear all samples before an unfinished segment is
                transcribed. A process that lags behind so leaves passes out. By default events do not depend on how the
                samples are cut into blocks.

        Returns:
            [`Pass`]: Its result must be passed to [`~LiveTranscript.take`] before the next call. `None` if more samples are
            needed.
        """
        while True:
            if self._finished:
                return self._pass(self._finished.popleft(), is_last=True)
            if self._is_due() and not (catch_up and self._can_hear()):
                self._passed_until = self.segmenter.end
                return self._pass(self.segmenter.open_segment(), is_last=False)
            if not self._can_hear():
                return None
            self._hear()

    def take(self, given: Pass, token_ids: list[int], alphas: torch.Tensor | np.ndarray | None) -> LiveEvent | None:
        """
        Take the result of a pass.

        Args:
            given ([`Pass`]): The pass.
            token_ids (`list[int]`): Generated tokens.
            alphas (`torch.Tensor` or `np.ndarray` of shape `(num_frames,)`, *optional*): CIF weights of the segment.

        Returns:
            [`LiveEvent`]: The change. `None` if nothing has changed.
        """
        text, language, words = self._decode(given.segment, token_ids, alphas)
        units = [word.text for word in words]
        first, end = (self._agreement.finish if given.is_last else self._agreement.update)(units)
        pieces = _split_pieces(text)
        committed = self._join(pieces[first:end])
        if end > first:
            self._last_word = units[end - 1]
        partial = self._join(pieces[end:])
        heard = given.segment.end
        if given.is_last:
            self._begin_segment()
            if not text and not partial and not committed:
                return None
            segment = LiveSegment(given.segment.start, given.segment.end, text, language, tuple(words))
            return LiveEvent(committed, tuple(words[first:end]), "", language, heard, segment)
        self._draft_ids = [token for token in token_ids if token not in self.processor.tokenizer.all_special_ids]
        if not committed and partial == self._partial:
            return None
        self._partial = partial
        return LiveEvent(committed, tuple(words[first:end]), partial, language, heard)

    def drop(self, given: Pass) -> None:
        """Give a pass up whose transcription has failed. A finished segment then has no text beyond what was committed."""
        if given.is_last:
            self._begin_segment()

    def _pass(self, segment: Segment, is_last: bool) -> Pass:
        return Pass(segment, is_last, self._draft_ids, self.language, self.settings.prompt, self.settings.keywords)

    def _is_due(self) -> bool:
        start = self.segmenter.open_start
        if start is None:
            return False
        since = max(start, self._passed_until)
        is_long_ago = self.segmenter.end - since >= self.settings.latency_s * self.processor.sampling_rate
        # A pause adds nothing to transcribe.
        return is_long_ago and self.segmenter.speech_end > since

    def _can_hear(self) -> bool:
        if self._is_ending:
            return not self._has_ended
        return self._num_waiting >= self.segmenter.block_length

    def _hear(self) -> None:
        """Hear one block."""
        size = min(self._num_waiting, self.segmenter.block_length)
        parts, missing = [], size
        while missing:
            part = self._waiting.popleft()
            if len(part) > missing:
                self._waiting.appendleft(part[missing:])
                part = part[:missing]
            parts.append(part)
            missing -= len(part)
        self._num_waiting -= size
        self._has_ended = self._is_ending and self._num_waiting == 0
        block = np.concatenate(parts) if parts else np.empty(0, np.float32)
        self._finished.extend(self.segmenter.hear(block, self._has_ended))

    def _decode(self, segment: Segment, token_ids, alphas) -> tuple[str, str | None, list[LiveWord]]:
        """Text, language and words of a hypothesis."""
        has_times = alphas is not None and bool((alphas > 0).any())
        times = {"output_offsets": "word", "alphas": alphas, "frame_period": self.frame_period} if has_times else {}
        decoded = self.processor.decode(token_ids, return_language=True, **times)
        text, language = decoded["text"], self.language or decoded["language"]
        if not has_times:
            return text, language, [LiveWord(unit, None, None) for unit in split_units(text)]
        words = []
        for offset in decoded["offsets"]:
            start, end = (round(min(segment.start + time, segment.end), 3) for time in offset["timestamp"])
            words.append(LiveWord(offset["text"], start, end))
        return text, language, words

    def _join(self, pieces: list[str]) -> str:
        """Text that follows the committed text."""
        if not pieces:
            return ""
        unit = pieces[0].strip()
        return joint(self._last_word, unit) + unit + "".join(pieces[1:])


def _split_pieces(text: str) -> list[str]:
    """The units of [`split_units`], each with the space before it."""
    return [
        (" " if index == 0 else "") + unit for word in text.split() for index, unit in enumerate(split_units(word))
    ]


__all__ = ["LiveSettings", "LiveTranscript", "Pass"]
