"""Checks keywords: words that a recording may contain and that its prompt lists."""

from collections.abc import Sequence


def spread_keywords(keywords: str | Sequence | None, count: int) -> list[list[str] | None]:
    """
    Give each recording its list of keywords. `prepare_keyword_inputs` of newer versions of Transformers reads the argument in
    the same way.

    Args:
        keywords (`str`, `list[str]` or `list[list[str]]`, *optional*): One keyword or a list for all recordings, or a list (or
            `None`) for each recording.
        count (`int`): Number of recordings.

    Returns:
        `list[list[str] | None]`: Keywords of each recording, without repetitions. `None` in place of an empty list.

    Raises:
        `TypeError`: If a keyword is not a string.
        `ValueError`: If a keyword is blank, or there are not as many lists as recordings.
    """
    if keywords is None:
        return [None] * count
    if isinstance(keywords, str):
        keywords = [keywords]
    if not isinstance(keywords, (list, tuple)):
        raise TypeError(f"`keywords` must be a string, a list of strings, or a list of lists, got {keywords!r:.60}.")
    if all(isinstance(keyword, str) for keyword in keywords):
        return [_clean(keywords)] * count
    if len(keywords) != count:
        raise ValueError(f"`keywords` has {len(keywords)} lists for {count} recording(s).")
    return [None if row is None else _clean(row) for row in keywords]


def _clean(keywords: Sequence) -> list[str] | None:
    if isinstance(keywords, str) or not isinstance(keywords, (list, tuple)):
        raise TypeError(f"`keywords` must have a list for each recording, got {keywords!r:.60}.")
    cleaned = []
    for keyword in keywords:
        if not isinstance(keyword, str):
            raise TypeError(f"`keywords` must be strings, got {keyword!r:.60}.")
        words = " ".join(keyword.split())
        if not words:
            raise ValueError("`keywords` has a blank entry; remove it.")
        cleaned.append(words)
    return list(dict.fromkeys(cleaned)) or None


__all__ = ["spread_keywords"]
