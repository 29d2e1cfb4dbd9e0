"""Continuous Integrate-and-Fire (Dong & Xu, 2020, arXiv 1905.11235) as pure, loop-free functions."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class CifOutput:
    """
    What [`integrate_and_fire`] returns; "packed" means concatenated over the batch, in order, without padding.

    Attributes:
        embeds (`torch.Tensor` of shape `(sum(lengths), hidden_size)`): Packed integrated embeddings.
        lengths (`torch.LongTensor` of shape `(batch_size,)`): Embeddings fired for each row.
        fire_times (`torch.Tensor` of shape `(sum(lengths),)`): Packed times at which each embedding fired, in frames
            from the start of the row, with sub-frame precision: frame `t` covers the interval `[t, t + 1]`.
        quantities (`torch.Tensor` of shape `(batch_size,)`): Unscaled `sum(alphas) / threshold` of each row, the
            predicted number of embeddings. Carries gradient; float32 or wider.
        alphas (`torch.Tensor` of shape `(batch_size, num_frames)`): Unscaled weights, zero where masked.
    """

    embeds: torch.Tensor
    lengths: torch.Tensor
    fire_times: torch.Tensor
    quantities: torch.Tensor
    alphas: torch.Tensor


def integrate_and_fire(
    hidden_states: torch.Tensor,
    alphas: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    threshold: float = 1.0,
    target_lengths: torch.Tensor | None = None,
    tail_threshold: float = 0.5,
) -> CifOutput:
    """
    Integrate frames weighted by `alphas` and fire one embedding for each `threshold` of accumulated weight.

    With `c_t = alpha_1 + … + alpha_t`, embedding `k` collects every frame in proportion to the overlap of
    `[c_{t-1}, c_t]` with `[k * threshold, (k + 1) * threshold]`. This is the recurrence of arXiv 1905.11235 (eq. 1-4)
    in closed form: the overlaps of one embedding are a contiguous run of frames, so that the embeddings are sums over
    runs. It also holds where a weight exceeds the threshold and fires several times within one frame.

    Weights accumulate in float64 (float32 on devices that lack it) and embeddings in float32 or wider, whatever the
    dtype of `hidden_states`.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`): Frames.
        alphas (`torch.Tensor` of shape `(batch_size, num_frames)`): Weight of each frame, not negative.
        attention_mask (`torch.Tensor` of shape `(batch_size, num_frames)`, *optional*): Non-zero for real frames. Padded
            frames weigh nothing, whatever they hold.
        threshold (`float`, *optional*, defaults to 1.0): Accumulated weight that fires (β in the paper).
        target_lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Number of embeddings to fire for each
            row. The weights are scaled by `target * threshold / sum(alphas)` (section 3.2, "scaling strategy"); a row
            without any weight fires nothing. Without it the weights are used as they are.
        tail_threshold (`float`, *optional*, defaults to 0.5): Without `target_lengths`, weight left at the end fires
            one more embedding if it exceeds this fraction of `threshold` (section 3.2, "tail handling").

    Returns:
        [`CifOutput`]

    Raises:
        `ValueError`: If shapes disagree or `threshold` is not positive.
    """
    if hidden_states.ndim != 3 or alphas.shape != hidden_states.shape[:2]:
        raise ValueError(
            "`hidden_states` must have shape (batch_size, num_frames, hidden_size) and `alphas` (batch_size, num_frames),"
            f" got {tuple(hidden_states.shape)} and {tuple(alphas.shape)}."
        )
    if attention_mask is not None and attention_mask.shape != alphas.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `alphas`, {tuple(alphas.shape)}, got {tuple(attention_mask.shape)}."
        )
    if target_lengths is not None and target_lengths.shape != alphas.shape[:1]:
        raise ValueError(
            f"`target_lengths` must have shape ({alphas.shape[0]},), one per row, got {tuple(target_lengths.shape)}."
        )
    if threshold <= 0:
        raise ValueError(f"`threshold` must be positive, got {threshold}.")

    batch_size, num_frames, hidden_size = hidden_states.shape
    device = hidden_states.device
    if attention_mask is not None:
        alphas = alphas.masked_fill(attention_mask == 0, 0.0)

    # One token is one unit from here on. In float32 the scaled sum lands beside the target in half of random rows.
    accumulator = torch.float32 if device.type == "mps" else torch.float64
    weights = alphas.to(accumulator) / threshold
    quantities = weights.sum(-1)
    if target_lengths is None:
        whole = quantities.detach().floor()
        lengths = (whole + (quantities.detach() - whole > tail_threshold)).long()
    else:
        has_weight = quantities.detach() > 0
        lengths = torch.where(has_weight, target_lengths.to(device=device, dtype=torch.long), 0)
        weights = weights * (lengths / torch.where(has_weight, quantities, 1.0))[:, None]
    ends = weights.cumsum(-1)

    # Packed list of tokens: the row of each and its index in that row.
    row = torch.repeat_interleave(torch.arange(batch_size, device=device), lengths)
    first_token = lengths.cumsum(0) - lengths
    token = torch.arange(row.numel(), device=device) - first_token[row]
    max_tokens = int(lengths.max()) if batch_size else 0

    # A token begins in the first frame that ends beyond its lower bound and fires in the first that reaches its upper.
    bounds = torch.arange(max_tokens + 1, device=device, dtype=accumulator)
    # A bound beyond the sum, as a tail's is, falls to the last frame that weighs anything, so never to padding.
    totals = ends.detach()[:, -1:] if num_frames else ends.detach().new_zeros(batch_size, 1)
    bounds = torch.minimum(bounds, totals).contiguous()
    begin = torch.searchsorted(ends.detach(), bounds, right=True)[row, token]
    fire = torch.searchsorted(ends.detach(), bounds)[row, token + 1]
    # Rounding in the last ulp may put the next token's begin behind its own fire; the token then lies in one frame.
    begin = torch.minimum(begin, fire)

    # Packed list of (token, frame) overlaps, a contiguous run of frames for each token.
    run_lengths = fire - begin + 1
    run_starts = run_lengths.cumsum(0) - run_lengths
    pair_token = torch.repeat_interleave(torch.arange(row.numel(), device=device), run_lengths)
    pair_row = row[pair_token]
    pair_frame = begin[pair_token] + torch.arange(pair_token.numel(), device=device) - run_starts[pair_token]
    frame_ends = ends[pair_row, pair_frame]
    frame_starts = frame_ends - weights[pair_row, pair_frame]
    lower = token[pair_token].to(accumulator)
    upper = lower + 1
    if target_lengths is not None:
        # All the weight belongs to the targets: the last one takes the rounding of the sum with it.
        upper = torch.where(token[pair_token] + 1 == lengths[pair_row], torch.inf, upper)
    overlaps = (torch.minimum(frame_ends, upper) - torch.maximum(frame_starts, lower)).clamp(min=0)

    if attention_mask is not None:
        # A masked frame within a run weighs zero, and zero times what it may hold need not be zero.
        is_real = attention_mask[pair_row, pair_frame] != 0
        pair_frame = torch.where(is_real, pair_frame, fire[pair_token])

    compute_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    frames = hidden_states.to(compute_dtype).reshape(batch_size * num_frames, hidden_size)
    embeds = F.embedding_bag(
        pair_row * num_frames + pair_frame,
        frames,
        run_starts,
        mode="sum",
        per_sample_weights=(overlaps * threshold).to(compute_dtype),
    )

    with torch.no_grad():
        fire_ends, fire_weights = ends[row, fire], weights[row, fire]
        into_frame = (token + 1 - (fire_ends - fire_weights)) / fire_weights.clamp(min=torch.finfo(accumulator).tiny)
        fire_times = fire + into_frame.clamp(0, 1)

    return CifOutput(
        embeds=embeds.to(hidden_states.dtype),
        lengths=lengths,
        fire_times=fire_times.to(torch.float32),
        quantities=quantities.to(torch.promote_types(alphas.dtype, torch.float32)),
        alphas=alphas,
    )


def quantity_loss(
    quantities: torch.Tensor, target_lengths: torch.Tensor, num_tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """
    `sum(|quantity - target|) / num_tokens` (arXiv 1905.11235, section 3.2), the mean count error per target token.

    Dividing by tokens and not by recordings makes it comparable between languages and lengths, and additive over
    gradient accumulation.

    Args:
        quantities (`torch.Tensor` of shape `(batch_size,)`): Predicted numbers of tokens.
        target_lengths (`torch.LongTensor` of shape `(batch_size,)`): True numbers of tokens.
        num_tokens (`torch.Tensor` or `int`, *optional*): Divisor; defaults to `target_lengths.sum()`, at least 1.

    Returns:
        `torch.Tensor`: A scalar.
    """
    if num_tokens is None:
        num_tokens = target_lengths.sum().clamp(min=1)
    return (quantities - target_lengths).abs().sum() / num_tokens


class ContinuousIntegrateAndFire(nn.Module):
    """
    Predicts a weight for each frame and integrates the frames into embeddings.

    The weights come from a convolution that sees both sides of a frame, a linear layer and a sigmoid (arXiv 1905.11235,
    section 3.1).

    Args:
        hidden_size (`int`): Channels of the frames.
        kernel_size (`int`): Kernel of the weight predictor, in frames; odd.
        threshold, tail_threshold (`float`): See [`integrate_and_fire`].
        initial_alpha (`float`): Weight that the untrained predictor gives to a frame, on average.
    """

    def __init__(
        self, hidden_size: int, kernel_size: int, threshold: float, tail_threshold: float, initial_alpha: float
    ):
        super().__init__()
        self.threshold = threshold
        self.tail_threshold = tail_threshold
        # A sigmoid cannot leave (0, 1), and at its ends it would not learn.
        self.initial_alpha = min(max(initial_alpha, 0.01), 0.99)
        self.conv = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding=kernel_size // 2)
        self.alpha_proj = nn.Linear(hidden_size, 1)

    @property
    def initial_alpha_bias(self) -> float:
        return torch.logit(torch.tensor(self.initial_alpha, dtype=torch.float64)).item()

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, target_lengths: torch.Tensor | None = None
    ) -> CifOutput:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`): Frames.
            attention_mask (`torch.BoolTensor` of shape `(batch_size, num_frames)`): True for real frames.
            target_lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Numbers of embeddings to fire.
        """
        visible = hidden_states.masked_fill(~attention_mask[:, :, None], 0.0)
        context = F.relu(self.conv(visible.transpose(1, 2)).transpose(1, 2))
        alphas = torch.sigmoid(self.alpha_proj(context).squeeze(-1).float())
        return integrate_and_fire(visible, alphas, attention_mask, self.threshold, target_lengths, self.tail_threshold)
