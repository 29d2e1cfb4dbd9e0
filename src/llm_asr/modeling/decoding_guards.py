"""Guards against runaway decoding: a length limit from the audio's duration, and signs of a hallucinated transcript."""

import zlib
from dataclasses import dataclass

import torch
from transformers.generation import StoppingCriteria


# Tokens beyond the limit for the duration: the name of the language, and a margin for short recordings.
SPARE_TOKENS = 16


def length_limits(
    num_frames: torch.Tensor, frame_rate: float, tokens_per_second: float, max_new_tokens: int | None
) -> torch.Tensor:
    """
    How many new tokens each row may have, given its audio.

    Args:
        num_frames (`torch.LongTensor` of shape `(batch_size,)`): Frames that the speech encoder made of each row's audio.
        frame_rate (`float`): Frames per second.
        tokens_per_second (`float`): Tokens that a second may have.
        max_new_tokens (`int`, *optional*): Tokens that a row may have at most.

    Returns:
        `torch.LongTensor` of shape `(batch_size,)`.
    """
    limits = (num_frames * (tokens_per_second / frame_rate)).ceil().long() + SPARE_TOKENS
    return limits if max_new_tokens is None else limits.clamp(max=max_new_tokens)


class AudioLengthCriteria(StoppingCriteria):
    """
    Ends each row after as many new tokens as its own recording may have, whatever else is in the batch.

    Args:
        max_new_tokens (`torch.LongTensor` of shape `(batch_size,)`): For each row.
        prompt_length (`int`): Tokens in `input_ids` before the first new one.
    """

    def __init__(self, max_new_tokens: torch.Tensor, prompt_length: int):
        self.max_new_tokens = max_new_tokens
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None, **kwargs) -> torch.Tensor:
        limits = self.max_new_tokens.repeat_interleave(len(input_ids) // len(self.max_new_tokens))
        return input_ids.shape[1] - self.prompt_length >= limits.to(input_ids.device)


def compression_ratio(token_ids: list[int], vocab_size: int) -> float:
    """
    How much shorter zlib makes a transcript, as Whisper measures repetition (arXiv 2212.04356, section 4.5), but of token
    ids, as Transformers does; zero without tokens.
    """
    if not token_ids:
        return 0.0
    width = (vocab_size - 1).bit_length() // 8 + 1
    encoded = b"".join(token_id.to_bytes(width, "little") for token_id in token_ids)
    return len(encoded) / len(zlib.compress(encoded))


@dataclass
class Confidence:
    """
    How sure a model is of its transcripts, for each row.

    Attributes:
        avg_logprobs (`torch.FloatTensor` of shape `(batch_size,)`): Mean natural logarithm of the probabilities of the new
            tokens, the end of the sequence among them.
        no_speech_probs (`torch.FloatTensor` of shape `(batch_size,)`): Probability that there is nothing to transcribe:
            that the first token is the end of the sequence.
    """

    avg_logprobs: torch.Tensor
    no_speech_probs: torch.Tensor


@dataclass
class Fallback:
    """
    When a transcript is tried again at a higher temperature (arXiv 2212.04356, section 4.5).

    Attributes:
        temperatures (`list[float]`): To be tried in turn; zero is greedy decoding.
        compression_ratio_threshold (`float`, *optional*): A transcript that compresses better is repetitive.
        logprob_threshold (`float`, *optional*): A transcript with a lower average log-probability is made up.
        no_speech_threshold (`float`, *optional*): Where the probability of silence is higher and the average
            log-probability is below `logprob_threshold`, the transcript is empty, and is not tried again.
    """

    temperatures: list[float]
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None

    def __post_init__(self):
        if not self.temperatures or any(temperature < 0 for temperature in self.temperatures):
            raise ValueError(f"`temperature` must hold numbers from zero up, got {self.temperatures}.")
        if self.compression_ratio_threshold is None and self.logprob_threshold is None:
            raise ValueError(
                "`temperature` with several values needs `compression_ratio_threshold`, `logprob_threshold`, or both, to "
                "tell when the next one is tried."
            )
        if self.no_speech_threshold is not None and self.logprob_threshold is None:
            raise ValueError(
                "`no_speech_threshold` needs `logprob_threshold`: silence must be likely, and speech not."
            )

    def is_silent(self, confidence: Confidence) -> torch.Tensor:
        """Rows without speech, of shape `(batch_size,)`."""
        if self.no_speech_threshold is None or self.logprob_threshold is None:
            return torch.zeros_like(confidence.avg_logprobs, dtype=torch.bool)
        is_unlikely = confidence.avg_logprobs < self.logprob_threshold
        return (confidence.no_speech_probs > self.no_speech_threshold) & is_unlikely

    def is_doubtful(self, confidence: Confidence, ratios: torch.Tensor) -> torch.Tensor:
        """Rows to decode again, of shape `(batch_size,)`, given their compression ratios."""
        doubtful = torch.zeros_like(ratios, dtype=torch.bool)
        if self.compression_ratio_threshold is not None:
            doubtful |= ratios > self.compression_ratio_threshold
        if self.logprob_threshold is not None:
            doubtful |= confidence.avg_logprobs < self.logprob_threshold
        return doubtful & ~self.is_silent(confidence)
