"""Decodes tokens to text while they are generated."""

from ..processing.processing_llm_asr import LlmAsrProcessor
from ..processing.writing import joint


class TextStream:
    """
    Returns the text of a recording in parts while it is generated. The parts together are the transcript.

    Args:
        processor ([`LlmAsrProcessor`]): The model's processor.
    """

    def __init__(self, processor: LlmAsrProcessor):
        self.processor = processor
        self._text = ""
        self.begin_segment()

    def begin_segment(self) -> None:
        self._ids: list[int] = []
        self._sent = ""

    def add(self, ids: list[int]) -> str:
        """The text that `ids` add. Text that later tokens may change is held back."""
        self._ids += ids
        decoded = self.processor.decode(self._ids, return_language=True)
        text = decoded["text"]
        # The model may be writing the name of the language, which is not part of the transcript.
        is_naming = decoded["language"] is None and self.processor.may_name_languages(text)
        # The tokenizer decodes an incomplete character as a replacement character.
        return "" if is_naming else self._advance(text.rstrip("\N{REPLACEMENT CHARACTER}"))

    def end_segment(self) -> str:
        """The text that was held back."""
        return self._advance(self.processor.decode(self._ids))

    def _advance(self, text: str) -> str:
        # A further token can make the tokenizer remove a space from the decoded text.
        if len(text) <= len(self._sent) or not text.startswith(self._sent):
            return ""
        added = text[len(self._sent) :]
        if not self._sent:
            added = joint(self._text, added) + added
        self._text += added
        self._sent = text
        return added
