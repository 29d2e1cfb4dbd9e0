"""Attention in chunks, so that a speech encoder needs a bounded part of the future."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AttentionChunks:
    """
    Which frames of a speech encoder attend to which. Frames are cut into chunks of `size`. All layers see the same: a frame
    attends to its own chunk, to `left` frames before the chunk and to `lookahead` frames after it.

    A look-ahead would grow with each layer if the frames after a chunk saw their own future. They are therefore encoded once
    more for each chunk, as copies that see what the chunk sees (Emformer's right context, arXiv 2010.10759, section 2.2).

    Attributes:
        size (`int`): Frames in a chunk.
        left (`int`): Frames before a chunk.
        lookahead (`int`): Frames after a chunk.
    """

    size: int
    left: int
    lookahead: int


@dataclass
class ChunkLayout:
    """
    A sequence of frames with copies at its end, for [`AttentionChunks`].

    Attributes:
        positions (`torch.LongTensor` of shape `(num_frames + num_copies,)`): Frame of which each entry is made. The first
            `num_frames` are the frames in order.
        is_visible (`torch.BoolTensor` of shape `(num_frames + num_copies, num_frames + num_copies)`): True where the entry of
            the row attends to the entry of the column.
    """

    positions: torch.Tensor
    is_visible: torch.Tensor

    def make_mask(self, attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """
        The mask for the layers.

        Args:
            attention_mask (`torch.BoolTensor` of shape `(num_recordings, num_frames)`): True for real frames.
            dtype (`torch.dtype`): Of the hidden states.

        Returns:
            `torch.Tensor` of shape `(num_recordings, 1, num_frames + num_copies, num_frames + num_copies)`: To be added to
            attention scores. Every entry attends to itself, so that no row of padding is NaN.
        """
        is_real = attention_mask[:, self.positions]
        itself = torch.eye(len(self.positions), dtype=torch.bool, device=is_real.device)
        return as_scores((self.is_visible & is_real[:, None, :]) | itself, dtype)


def lay_out_chunks(num_frames: int, chunks: AttentionChunks, device: torch.device) -> ChunkLayout:
    """Lay out `num_frames` frames and the copies that the look-ahead of their chunks needs."""
    frames = torch.arange(num_frames, device=device)
    starts = torch.arange(0, num_frames, chunks.size, device=device)
    ahead = starts[:, None] + chunks.size + torch.arange(chunks.lookahead, device=device)
    copied_for, _ = (ahead < num_frames).nonzero(as_tuple=True)
    positions = torch.cat([frames, ahead[ahead < num_frames]])
    chunk = torch.cat([frames // chunks.size, copied_for])
    is_copy = torch.arange(len(positions), device=device) >= num_frames
    start = chunk[:, None] * chunks.size
    is_near = (positions >= start - chunks.left) & (positions < start + chunks.size)
    is_visible = torch.where(is_copy, chunk[:, None] == chunk, is_near)
    return ChunkLayout(positions, is_visible)


def as_scores(is_visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    Turn a boolean mask of shape `(batch_size, num_queries, num_keys)` into one that is added to attention scores, of shape
    `(batch_size, 1, num_queries, num_keys)`.
    """
    scores = torch.zeros(is_visible.shape, dtype=dtype, device=is_visible.device)
    return scores.masked_fill(~is_visible, torch.finfo(dtype).min)[:, None]


def check_attention_implementation(name: str | None) -> None:
    """Raise a `ValueError` if an attention implementation does not take the mask of [`ChunkLayout`]."""
    if name not in ("eager", "sdpa"):
        raise ValueError(
            f"`encoder_attention='chunked'` needs attention with a mask, and the speech encoder has {name!r}; load the model "
            "with `attn_implementation={'audio_config': 'sdpa'}`."
        )


__all__ = ["AttentionChunks", "ChunkLayout", "as_scores", "check_attention_implementation", "lay_out_chunks"]
