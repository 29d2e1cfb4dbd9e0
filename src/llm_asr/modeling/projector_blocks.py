"""The base of projectors that reduce blocks of frames, each apart from the others."""

import torch

from .projector_base import LlmAsrProjector, ReducedFrames


class BlockProjector(LlmAsrProjector):
    """
    A projector that reduces blocks of `block_size` encoder frames, each apart from the others, so that a stream can be reduced
    block by block.
    """

    block_size: int

    def open_stream(self) -> "BlockStream":
        return BlockStream(self)


class BlockStream:
    """
    The frames of an unfinished block of one stream; see [`ProjectorStream`].

    Args:
        projector ([`BlockProjector`]): The projector.
    """

    def __init__(self, projector: BlockProjector):
        self._projector = projector
        self._waiting: torch.Tensor | None = None

    def reduce(self, frames: torch.Tensor, is_last: bool) -> ReducedFrames:
        if self._waiting is not None:
            frames = torch.cat([self._waiting, frames])
        num_ready = len(frames) if is_last else len(frames) - len(frames) % self._projector.block_size
        self._waiting = frames[num_ready:]
        is_real = torch.ones(1, num_ready, dtype=torch.bool, device=frames.device)
        return self._projector.reduce_frames(frames[None, :num_ready], is_real)


__all__ = ["BlockProjector", "BlockStream"]
