"""Convolutions over time of frames that arrive in blocks."""

import torch
import torch.nn.functional as F
from torch import nn


class StreamingConvolution:
    """
    A [`~torch.nn.Conv1d`] with odd kernel and padding `kernel // 2`, over the frames of one stream. Over all blocks it gives
    what the convolution gives for the whole. An output waits for the `kernel // 2` frames after its centre.

    Args:
        conv (`nn.Conv1d`): The convolution.
    """

    def __init__(self, conv: nn.Conv1d):
        self.conv = conv
        self.kernel_size, self.stride = int(conv.kernel_size[0]), int(conv.stride[0])
        self.num_padding = self.kernel_size // 2
        self.num_inputs = self.num_outputs = 0
        # Frames from `self._start` on. The padding has negative numbers.
        self._frames = conv.weight.new_zeros(self.num_padding, conv.in_channels)
        self._start = -self.num_padding

    @torch.no_grad()
    def push(self, frames: torch.Tensor, is_last: bool = False) -> torch.Tensor:
        """
        Args:
            frames (`torch.Tensor` of shape `(num_frames, in_channels)`): The next frames.
            is_last (`bool`, *optional*, defaults to `False`): Whether they are the last ones.

        Returns:
            `torch.Tensor` of shape `(num_outputs, out_channels)`: The outputs that are complete now.
        """
        self._frames = torch.cat([self._frames, frames.to(self._frames)])
        self.num_inputs += len(frames)
        num_ready = self.count_outputs(self.num_inputs, is_last) - self.num_outputs
        if num_ready <= 0:
            return self._frames.new_zeros(0, self.conv.out_channels)
        if is_last:
            self._frames = F.pad(self._frames, (0, 0, 0, self.num_padding))
        first = self.num_outputs * self.stride - self.num_padding - self._start
        used = self._frames[first : first + (num_ready - 1) * self.stride + self.kernel_size]
        outputs = F.conv1d(used.T[None], self.conv.weight, self.conv.bias, self.stride)[0].T
        self.num_outputs += num_ready
        # With a stride above the kernel, frames that have not come yet are left out too, by `first` above.
        num_done = min(len(self._frames), self.num_outputs * self.stride - self.num_padding - self._start)
        self._frames, self._start = self._frames[num_done:], self._start + num_done
        return outputs

    def count_outputs(self, num_inputs: int, is_last: bool = False) -> int:
        """Outputs that are complete after `num_inputs` frames."""
        num_known = num_inputs if is_last else max(0, num_inputs - self.num_padding)
        return -(-num_known // self.stride)


__all__ = ["StreamingConvolution"]
