"""The interface of an engine, which continues prompt embeddings with the language model."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from transformers import GenerationConfig

from ..publishing.front_end import PromptEmbeds


@dataclass(frozen=True)
class Decoding:
    """
    Decoding settings of one prompt. The checkpoint's `generation_config` sets all others.

    Args:
        temperature (`float`): Sampling temperature; zero means greedy decoding.
        output_confidence (`bool`): Whether to return log-probabilities.
    """

    temperature: float
    output_confidence: bool = False


@dataclass
class NewTokens:
    """
    Attributes:
        ids (`list[int]`): New tokens since the previous `NewTokens`, including the end-of-sequence token.
        logprobs (`list[float]`, *optional*): Natural logarithm of the probability of each token, if
            `output_confidence` is set.
        no_speech_prob (`float`, *optional*): Probability that the first token ends the sequence; see [`Confidence`]. Only
            the first `NewTokens` of a prompt has it, and only if `output_confidence` is set.
    """

    ids: list[int]
    logprobs: list[float] | None = None
    no_speech_prob: float | None = None


def end_token_ids(config: GenerationConfig) -> list[int]:
    """Tokens that end a sequence. A checkpoint may name one as an integer or several as a list."""
    ids = config.eos_token_id
    return ids if isinstance(ids, list) else [ids]


class EngineDeadError(RuntimeError):
    """The engine has stopped. Only a restart of the server brings it back."""


class Engine(ABC):
    """
    Continues prompt embeddings with the exported language model.

    Attributes:
        max_length (`int`): Largest sum of prompt embeddings and new tokens.
    """

    max_length: int

    @abstractmethod
    async def start(self) -> None:
        """Load the model."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop the model and release its resources."""

    @abstractmethod
    def generate(self, prompt: PromptEmbeds, decoding: Decoding) -> AsyncGenerator[NewTokens, None]:
        """
        Generate up to `prompt.max_new_tokens` tokens. Closing the generator cancels the generation.

        Raises:
            `EngineDeadError`: If the engine has stopped.
        """

    @abstractmethod
    async def check_health(self) -> None:
        """
        Raises:
            `EngineDeadError`: If the engine has stopped.
        """
