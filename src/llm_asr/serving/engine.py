"""What continues prompt embeddings: the one thing that the server asks of an engine."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass

from transformers import GenerationConfig

from ..publishing.front_end import PromptEmbeds


@dataclass(frozen=True)
class Decoding:
    """
    How one prompt is to be continued; all else is as the checkpoint's `generation_config` says.

    Args:
        temperature (`float`): Zero is greedy decoding.
        output_confidence (`bool`): Whether log-probabilities are wanted.
    """

    temperature: float
    output_confidence: bool = False


@dataclass
class NewTokens:
    """
    Attributes:
        ids (`list[int]`): Tokens that have been written since the last time, the end of the sequence among them.
        logprobs (`list[float]`, *optional*): Natural logarithm of the probability of each, if wanted.
        no_speech_prob (`float`, *optional*): With the first tokens, if wanted: the probability that the first token ends the
            sequence; see [`Confidence`].
    """

    ids: list[int]
    logprobs: list[float] | None = None
    no_speech_prob: float | None = None


def end_token_ids(config: GenerationConfig) -> list[int]:
    """Tokens that end a sequence, of which a checkpoint may name one or several."""
    ids = config.eos_token_id
    return ids if isinstance(ids, list) else [ids]


class EngineDeadError(RuntimeError):
    """The engine has stopped, and will not come back without a restart."""


class Engine(ABC):
    """
    Continues prompt embeddings with the exported language model.

    Attributes:
        max_length (`int`): Embeddings of the prompt and new tokens together, at most.
    """

    max_length: int

    @abstractmethod
    async def start(self) -> None:
        """Load the model."""

    @abstractmethod
    async def stop(self) -> None:
        """Let go of everything."""

    @abstractmethod
    def generate(self, prompt: PromptEmbeds, decoding: Decoding) -> AsyncIterator[NewTokens]:
        """
        Tokens as they are written, up to `prompt.max_new_tokens`. Whoever stops iterating cancels.

        Raises:
            `EngineDeadError`: If nothing can be written any more.
        """

    @abstractmethod
    async def check_health(self) -> None:
        """
        Raises:
            `EngineDeadError`: If nothing can be written any more.
        """
