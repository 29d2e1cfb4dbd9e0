"""Whole numbers of a batch that the host needs, read from the device in as few transfers as possible."""

from dataclasses import dataclass

import torch


def read_together(**tensors: torch.Tensor | None) -> dict[str, list[int]]:
    """
    Copy several tensors of whole numbers or booleans to the host in one transfer. For each transfer the host waits until the
    device has done all work before it.

    Args:
        tensors (`torch.Tensor`, *optional*): Of any shape; `None` is left out.

    Returns:
        `dict[str, list[int]]`: The numbers of each tensor, flat.
    """
    given = {name: tensor.flatten() for name, tensor in tensors.items() if tensor is not None}
    if not given:
        return {}
    device = next(iter(given.values())).device
    numbers = iter(torch.cat([tensor.to(device, torch.long) for tensor in given.values()]).tolist())
    return {name: [next(numbers) for _ in range(len(tensor))] for name, tensor in given.items()}


def find_true(mask: torch.Tensor, count: int) -> torch.Tensor:
    """
    Indices of the true elements of a flattened mask, without waiting for the device.

    Args:
        mask (`torch.BoolTensor`): Of any shape.
        count (`int`): How many elements are true.

    Returns:
        `torch.LongTensor` of shape `(count,)`, in ascending order.
    """
    return mask.flatten().to(torch.uint8).argsort(descending=True, stable=True).narrow(0, 0, count)


def select(values: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """
    `values[mask]`, without waiting for the device.

    Args:
        values (`torch.Tensor` of shape `(*mask.shape, ...)`): What is selected from.
        mask (`torch.BoolTensor`): True where `values` are kept.
        count (`int`): How many elements of `mask` are true.
    """
    return values.flatten(0, mask.dim() - 1).index_select(0, find_true(mask, count))


def is_any_of(tokens: torch.Tensor, token_ids: list[int]) -> torch.Tensor:
    """Where `tokens` are one of `token_ids`. `torch.isin` needs the tokens on the device."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for token_id in token_ids:
        found = found | (tokens == token_id)
    return found


@dataclass
class FrameNumbers:
    """
    Attributes:
        lengths (`list[int]`): Real frames of each recording.
        extent (`int`): Frames up to the last one that is real in any recording.
        comes_first (`bool`): Whether the real frames of each recording are before its padding.
    """

    lengths: list[int]
    extent: int
    comes_first: bool = True

    @property
    def has_padding(self) -> bool:
        """Whether any of the first `extent` frames is padding."""
        return any(length < self.extent for length in self.lengths)


def count_frames(mask: torch.Tensor | None) -> torch.Tensor | None:
    """What [`FrameNumbers`] are made of, of shape `(num_recordings + 2,)`."""
    if mask is None:
        return None
    is_real = mask != 0
    lengths = is_real.sum(-1)
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    extent = (places * is_real.any(0)).amax() if mask.numel() else lengths.new_zeros(())
    has_hole = (is_real != (places <= lengths[:, None])).any()
    return torch.cat([lengths, extent[None], has_hole[None].long()])


def to_frame_numbers(counted: list[int] | None) -> FrameNumbers | None:
    """Make [`FrameNumbers`] of what [`count_frames`] gave."""
    return None if counted is None else FrameNumbers(counted[:-2], counted[-2], not counted[-1])


def read_frame_numbers(mask: torch.Tensor) -> FrameNumbers:
    """
    Count real frames.

    Args:
        mask (`torch.Tensor` of shape `(num_recordings, num_feature_frames)`): Non-zero for real frames.
    """
    numbers = to_frame_numbers(read_together(frames=count_frames(mask))["frames"])
    assert numbers is not None
    return numbers


@dataclass
class BatchNumbers:
    """
    Numbers of a batch with audio.

    Attributes:
        audio_tokens (`list[int]`): Audio tokens of each row.
        text_lengths (`list[int]`): Other real tokens of each row.
        num_hidden (`int`): Audio tokens that `attention_mask` hides.
        features ([`FrameNumbers`], *optional*): Of the features, if they have a mask.
        frames ([`FrameNumbers`], *optional*): Of cached outputs of the speech encoder, if they have a mask.
        targets (`list[int]`, *optional*): Labels of each row.
        text_targets (`list[int]`, *optional*): Labels of each row that are not an end-of-sequence token. Absent where
            `target_lengths` are known to agree with the labels.
        num_scored (`int`): Labels that a token before them predicts.
        target_lengths (`list[int]`, *optional*): As given, else counted in the labels.
        translations (`list[bool]`, *optional*): Rows whose labels are a translation.
    """

    audio_tokens: list[int]
    text_lengths: list[int]
    num_hidden: int
    features: FrameNumbers | None = None
    frames: FrameNumbers | None = None
    targets: list[int] | None = None
    text_targets: list[int] | None = None
    num_scored: int = 0
    target_lengths: list[int] | None = None
    translations: list[bool] | None = None


def read_batch_numbers(
    is_audio: torch.Tensor,
    attention_mask: torch.Tensor | None,
    features_mask: torch.Tensor | None = None,
    frames_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    eos_token_ids: list[int] | None = None,
    target_lengths: torch.Tensor | None = None,
    is_translation: torch.Tensor | None = None,
) -> BatchNumbers:
    """
    Read the numbers of a batch in one transfer.

    Args:
        is_audio (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): True at audio tokens.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): Non-zero for real tokens.
        features_mask, frames_mask (`torch.Tensor` of shape `(num_recordings, num_frames)`, *optional*): Non-zero for real frames of
            features, or of cached outputs of the speech encoder.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Targets, -100 elsewhere.
        eos_token_ids (`list[int]`, *optional*): Tokens that end an answer. Without them, `target_lengths` are not checked.
        target_lengths, is_translation (`torch.Tensor`, *optional*): See [`LlmAsrForConditionalGeneration.forward`].
    """
    is_real = torch.ones_like(is_audio) if attention_mask is None else attention_mask.to(is_audio.device) != 0
    is_text = is_real & ~is_audio
    counted: dict[str, torch.Tensor | None] = {
        "audio_tokens": is_audio.sum(-1),
        "text_lengths": is_text.sum(-1),
        "num_hidden": (is_audio & ~is_real).sum(),
        "target_lengths": target_lengths,
        "translations": is_translation,
        "features": count_frames(features_mask),
        "frames": count_frames(frames_mask),
    }
    if labels is not None:
        is_target = labels != -100
        is_scored = is_target & is_text.to(labels.device)
        counted |= {
            "targets": is_target.sum(-1),
            "text_targets": None if eos_token_ids is None else (is_target & ~is_any_of(labels, eos_token_ids)).sum(-1),
            "num_scored": is_scored[:, 1:].sum(),
        }
    read = read_together(**counted)
    translations = read.get("translations")
    return BatchNumbers(
        audio_tokens=read["audio_tokens"],
        text_lengths=read["text_lengths"],
        num_hidden=read["num_hidden"][0],
        features=to_frame_numbers(read.get("features")),
        frames=to_frame_numbers(read.get("frames")),
        targets=read.get("targets"),
        text_targets=read.get("text_targets"),
        num_scored=read["num_scored"][0] if labels is not None else 0,
        target_lengths=read.get("target_lengths"),
        translations=None if translations is None else [bool(one) for one in translations],
    )


__all__ = [
    "BatchNumbers",
    "FrameNumbers",
    "find_true",
    "is_any_of",
    "read_batch_numbers",
    "read_frame_numbers",
    "read_together",
    "select",
]
