"""Where the frozen parts of a slim checkpoint come from."""

import re


# The parts that a slim checkpoint refers to, by their names in the model.
BACKBONES = ("audio_tower", "language_model")
BACKBONE_DTYPES = ("float32", "bfloat16", "float16", "float64")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_backbones(backbones: dict) -> None:
    """Raise a `ValueError` if `backbones` of [`LlmAsrConfig`] is malformed."""
    _require(set(backbones) == set(BACKBONES), f"`backbones` must have {list(BACKBONES)}, got {sorted(backbones)}.")
    for part, reference in backbones.items():
        fields = ("name_or_path", "revision", "dtype", "sha256")
        _require(
            isinstance(reference, dict) and set(reference) == set(fields),
            f"`backbones[{part!r}]` must have {list(fields)}, got {reference!r}.",
        )
        revision, digests = reference["revision"], reference["sha256"]
        _require(
            isinstance(reference["name_or_path"], str) and bool(reference["name_or_path"]),
            f"`name_or_path` of `backbones[{part!r}]` must be a Hub id or a folder, got {reference['name_or_path']!r}.",
        )
        _require(
            revision is None or (isinstance(revision, str) and re.fullmatch("[0-9a-f]{40}", revision) is not None),
            f"`revision` of `backbones[{part!r}]` must be a commit, in 40 hexadecimal digits, got {revision!r}.",
        )
        _require(
            reference["dtype"] in BACKBONE_DTYPES,
            f"`dtype` of `backbones[{part!r}]` must be one of {list(BACKBONE_DTYPES)}, got {reference['dtype']!r}.",
        )
        _require(
            isinstance(digests, dict) and bool(digests),
            f"`sha256` of `backbones[{part!r}]` must have the digest of each file, got {digests!r}.",
        )
        for name, digest in digests.items():
            _require(
                not any(mark in name for mark in "/\\:\0") and name.endswith((".json", ".safetensors")),
                f"`sha256` of `backbones[{part!r}]` names {name!r}, which is no file beside the others; this checkpoint is "
                "not to be trusted.",
            )
            _require(
                isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None,
                f"`sha256` of `backbones[{part!r}]` must have 64 hexadecimal digits for {name!r}, got {digest!r}.",
            )


__all__ = ["BACKBONES", "BACKBONE_DTYPES", "check_backbones"]
