"""Assigns recordings to splits. Splits share no group, no text and, where roles are known, no held-out speaker."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence


MINUTES = {"test": 15.0, "validation": 8.0}
"""Minutes of each source in the held-out splits."""

HELD_OUT_SPEAKER_MINUTES = 5.0
"""Minutes of the test by speakers who occur in no other split, if a source names enough speakers."""

OVERFULL = 0.1
"""A split may exceed its size by this share, because groups are not divided."""

MINOR_SHARE = 0.1
"""A speaker with more than this share of a source is not held out."""


def split_rows(
    rows: Sequence[dict], minutes: Mapping[str, float] = MINUTES
) -> tuple[dict[str, list[dict]], list[tuple[dict, str]]]:
    """Divide the rows of one source.

    Minor speakers of several groups are held out for the test, in the order of their names' digests, up to
    :data:`HELD_OUT_SPEAKER_MINUTES`. Groups fill the test and the validation set in the order of their names' digests, as
    long as they fit. The other groups are for training. The result does not depend on the order of the rows or on chance.

    Args:
        rows: rows with "text", "duration" in seconds, "speaker" and "group".
        minutes: size of each held-out split.

    Returns:
        The rows of "train", "test" and "validation", each with "new_speaker": whether the speaker is not in "train", or
        ``None`` if the speaker is unknown. The second value has the rejected rows with their reasons.
    """
    held_out = _held_out_speakers(rows)
    named = {row["group"] for row in rows if row["speaker"] is not None}
    total = sum(row["duration"] for row in rows)
    sides: dict[str, str] = {}
    # Groups with named speakers and groups without them each fill their share of the splits.
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
    """Return the split of each group. ``filled`` has the seconds that a split already contains."""
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
    """Choose minor speakers of several groups. A speaker of a single group is in one split anyway."""
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
