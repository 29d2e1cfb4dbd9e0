"""Tokens in, the text that they add out."""

from ..processing.pipeline_llm_asr import UNSPACED_LANGUAGES
from ..processing.processing_llm_asr import LlmAsrProcessor


class TextStream:
    """
    Text of a recording while it is written. All parts together are the transcript.

    Args:
        processor ([`LlmAsrProcessor`]): Of the model.
        language (`str`, *optional*): English name of the language; without it, what each segment names.
    """

    def __init__(self, processor: LlmAsrProcessor, language: str | None):
        self.processor = processor
        self.language = language
        self.is_empty = True
        self.begin_segment()

    def begin_segment(self) -> None:
        self._ids: list[int] = []
        self._sent = ""

    def add(self, ids: list[int]) -> str:
        """What `ids` add to the text; held back while it may still turn out to be something else."""
        self._ids += ids
        decoded = self.processor.decode(self._ids, return_language=True)
        text = decoded["text"]
        # Asked to or not, it may be naming the language, which is no part of the transcript.
        is_naming = decoded["language"] is None and any(
            name.startswith(text) for name in self.processor.languages.values()
        )
        # Half a character is decoded as a replacement character.
        return "" if is_naming else self._advance(text.rstrip("\N{REPLACEMENT CHARACTER}"), decoded["language"])

    def end_segment(self) -> str:
        """What has been held back."""
        decoded = self.processor.decode(self._ids, return_language=True)
        return self._advance(decoded["text"], decoded["language"])

    def _advance(self, text: str, named: str | None) -> str:
        # A tokenizer may take a space back that it has written.
        if len(text) <= len(self._sent) or not text.startswith(self._sent):
            return ""
        added = text[len(self._sent) :]
        if not self._sent and not self.is_empty and (self.language or named) not in UNSPACED_LANGUAGES:
            added = " " + added
        self._sent, self.is_empty = text, False
        return added
