"""Keywords for the recordings of an evaluation, and their report."""

import math
import random
from typing import Any

from ..keyword_lists import KeywordLists
from ..processing.processing_llm_asr import LlmAsrProcessor
from .keyword_metrics import keyword_report
from .tables import Tables


# Largest number of spoken words in a list. They occur in no other recording of the dataset.
MAX_SPOKEN = 4
# For each number of keywords, the keywords and the transcriptions, both by the number of the row.
KeywordRuns = dict[int, tuple[dict[int, list[str]], dict[int, dict]]]


def draw_keywords(rows: list[dict], size: int, processor: LlmAsrProcessor) -> dict[int, list[str]]:
    """
    Draw keywords for each row of a dataset: up to four words of its transcript that occur in no other transcript, and
    distractors from other transcripts. The draws are always the same.

    Args:
        rows (`list[dict]`): Rows with `row`, `text` and possibly `language`.
        size (`int`): Number of keywords of each row.
        processor ([`LlmAsrProcessor`]): The model's processor, which refuses keywords with special tokens.

    Returns:
        `dict[int, list[str]]`: Keywords by the number of the row.

    Raises:
        `ValueError`: If the transcripts have fewer than two distinct words.
    """
    lists = KeywordLists([row["text"] for row in rows], [row.get("language") for row in rows])
    drawn = {}
    for row in rows:
        own = lists.rare_words(row["text"], MAX_SPOKEN, max_texts=1)
        generator = random.Random(f"{size} {row['row']}")
        keywords = lists.draw(row["text"], row.get("language"), own, size, generator)
        drawn[row["row"]] = [keyword for keyword in keywords if processor.find_special_token(keyword) is None]
    return drawn


def report_keywords(rows: list[dict], runs: KeywordRuns, normalizer: str, tables: Tables) -> dict[str, dict[str, Any]]:
    """
    Report error rates, recall and leakage by the number of keywords.

    Args:
        rows (`list[dict]`): Rows of the dataset.
        runs (`dict`): For each number of keywords, the keywords and the transcriptions, both by the number of the row.
        normalizer (`str`): See [`~normalization.get_normalizer`].
        tables ([`Tables`]): Gets a table.

    Returns:
        `dict[str, dict]`: Results of [`keyword_report`] by the number of keywords; `None` for rates that are not defined.
    """
    report = {}
    for size, (keywords, outputs) in sorted(runs.items()):
        found = keyword_report(
            [row["text"] for row in rows],
            [outputs[row["row"]]["text"] for row in rows],
            [keywords[row["row"]] for row in rows],
            [row.get("language") for row in rows],
            normalizer,
        )
        report[str(size)] = {name: None if math.isnan(value) else value for name, value in found.items()}
    names = ("b_wer", "u_wer", "recall", "leakage", "leaked", "silence_leaked")
    headers = ("B-WER %", "U-WER %", "recall %", "leakage %", "leaked", "of these in silence")
    cells = [
        [size, *("–" if (value := found[name]) is None else f"{value:.1f}".removesuffix(".0") for name in names)]
        for size, found in report.items()
    ]
    tables.add("Keywords", ["keywords", *headers], cells)
    return report


__all__ = ["KeywordRuns", "draw_keywords", "report_keywords"]
