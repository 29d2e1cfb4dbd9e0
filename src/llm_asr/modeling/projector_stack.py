"""Projectors with a fixed rate by frames beside each other."""

import torch.nn.functional as F

from .batch_numbers import read_together, select
from .configuration_llm_asr import LlmAsrConfig
from .projector_base import ReducedFrames
from .projector_blocks import BlockProjector


class StackProjector(BlockProjector):
    """
    `k` frames beside each other → two linear layers (SLAM-ASR, arXiv 2402.08846, section 3.2), or a mixture of experts:
    `z_i = [h_(k i), ..., h_(k i + k - 1)]`. One frame is the stack of a size of one.

    If the last frames of a recording are fewer than `k`, zeros take the place of the missing ones, or the stack is left out; see
    `stack_remainder` of [`LlmAsrProjectorConfig`].
    """

    counts_frames_on_host = True

    def __init__(self, config: LlmAsrConfig):
        super().__init__(config)
        self.block_size = config.projector_config.stack_size
        self.is_remainder_dropped = config.projector_config.stack_remainder == "drop"
        self.add_text_layers(config)

    def reduce_frames(
        self,
        hidden_states,
        attention_mask,
        target_lengths=None,
        token_embeddings=None,
        frame_lengths: list[int] | None = None,
    ) -> ReducedFrames:
        size = self.block_size
        hidden_states = hidden_states.to(next(self.parameters()).dtype)
        attention_mask = attention_mask.to(hidden_states.device)
        missing = -hidden_states.shape[1] % size
        hidden_states = hidden_states.masked_fill(~attention_mask[:, :, None], 0.0)
        stacks = F.pad(hidden_states, (0, 0, 0, missing)).unflatten(1, (-1, size)).flatten(2)
        # Real frames come first, so the first frame of a stack tells if it has any, and the last if it is full.
        member = size - 1 if self.is_remainder_dropped else 0
        is_stack = F.pad(attention_mask, (0, missing))[:, member::size]
        lengths = is_stack.sum(-1)
        if frame_lengths is None:
            host_lengths = read_together(lengths=lengths)["lengths"]
        else:
            host_lengths = [(length + size - 1 - member) // size for length in frame_lengths]
        return ReducedFrames(select(stacks, is_stack, sum(host_lengths)), lengths, host_lengths=host_lengths)

    def count_reduction_flops(self, frame_rate: float) -> float:
        return 0.0


__all__ = ["StackProjector"]
