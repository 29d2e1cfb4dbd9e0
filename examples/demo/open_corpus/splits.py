"""Which side each recording is on: no group, no text and, where roles are known, some speakers on one side only."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence


MINUTES = {"test": 15.0, "validation": 8.0}
"""How much of each source is held out."""

HELD_OUT_SPEAKER_MINUTES = 5.0
"""How much of the test is by speakers who are nowhere else, where a source names enough of them."""

OVERFULL = 0.1
"""A split may be larger by this share, since groups stay whole."""

MINOR_SHARE = 0.1
"""A speaker with more than this of a source is not held out."""


def split_rows(
    rows: Sequence[dict], minutes: Mapping[str, float] = MINUTES
) -> tuple[dict[str, list[dict]], list[tuple[dict, str]]]:
    """Divide the rows of one source.

    Minor speakers of several groups, in the order of their names' digests, are in the test alone, up to
    :data:`HELD_OUT_SPEAKER_MINUTES`. Groups, in that order too, fill the test and the validation set as long as they fit; the rest trains. So neither the
    order of rows nor chance has a say.

    Args:
        rows: with "text", "duration" in seconds, "speaker" and "group".
        minutes: the size of each held-out split.

    Returns:
        The rows of "train", "test" and "validation", each with "new_speaker": whether training lacks their speaker,
        ``None`` if they are unknown. Then the rows that are left out, with the reason.
    """
    held_out = _held_out_speakers(rows)
    named = {row["group"] for row in rows if row["speaker"] is not None}
    total = sum(row["duration"] for row in rows)
    sides: dict[str, str] = {}
    # Groups whose speakers are named, and the others, each fill their share.
    for kind in (True, False):
        members = [row for row in rows if (row["group"] in named) is kind]
        share = sum(row["duration"] for row in members) / total
        filled = {"test": sum(row["duration"] for row in members if row["speaker"] in held_out)}
        remaining = [row for row in members if row["speaker"] not in held_out]
        sides |= _sides(remaining, {split: size * share for split, size in minutes.items()}, filled)
    splits: dict[str, list[dict]] = {"train": [], **{split: [] for split in minutes}}
    for row in rows:
        splits["test" if row["speaker"] in held_out else sides[row["group"]]].append(row)

    speakers = {row["speaker"] for row in splits["train"]}
    left_out = []
    seen: set[str] = set()
    for split, members in splits.items():
        kept = []
        for row in members:
            if row["text"] in seen:
                left_out.append((row, "text of another split"))
            else:
                kept.append({**row, "new_speaker": None if row["speaker"] is None else row["speaker"] not in speakers})
        seen.update(row["text"] for row in kept)
        splits[split] = kept
    return splits, left_out


def _sides(rows: Iterable[dict], minutes: Mapping[str, float], filled: Mapping[str, float]) -> dict[str, str]:
    """The split of each group, with so many seconds ``filled`` before."""
    seconds: dict[str, float] = defaultdict(float)
    for row in rows:
        seconds[row["group"]] += row["duration"]
    sides = {}
    for split, size in minutes.items():
        total = filled.get(split, 0.0)
        for group in sorted(seconds.keys() - sides, key=_digest):
            if total < size * 60 and total + seconds[group] <= size * 60 * (1 + OVERFULL):
                sides[group] = split
                total += seconds[group]
    return {group: sides.get(group, "train") for group in seconds}


def _held_out_speakers(rows: Sequence[dict]) -> set[str]:
    """Minor speakers of several groups; one of a single group is on one side anyway."""
    seconds: dict[str, float] = defaultdict(float)
    groups: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["speaker"] is not None:
            seconds[row["speaker"]] += row["duration"]
            groups[row["speaker"]].add(row["group"])
    total = sum(row["duration"] for row in rows)
    chosen: set[str] = set()
    filled = 0.0
    for speaker in sorted(seconds, key=_digest):
        minor = len(groups[speaker]) > 1 and seconds[speaker] <= MINOR_SHARE * total
        if minor and filled + seconds[speaker] <= HELD_OUT_SPEAKER_MINUTES * 60:
            chosen.add(speaker)
            filled += seconds[speaker]
    return chosen


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
