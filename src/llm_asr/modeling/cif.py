"""Continuous Integrate-and-Fire (Dong & Xu, 2020, arXiv 1905.11235) as pure, loop-free functions."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .batch_numbers import read_together
from .expert_balance import count_rows


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
        host_lengths (`list[int]`, *optional*): `lengths` on the host.
    """

    embeds: torch.Tensor
    lengths: torch.Tensor
    fire_times: torch.Tensor
    quantities: torch.Tensor
    alphas: torch.Tensor
    host_lengths: list[int] | None = None


def integrate_and_fire(
    hidden_states: torch.Tensor,
    alphas: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    threshold: float = 1.0,
    target_lengths: torch.Tensor | None = None,
    tail_threshold: float = 0.5,
    host_targets: list[int] | None = None,
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
            without any weight fires nothing. Without it, and in rows where it is negative, the weights are used as they are.
        tail_threshold (`float`, *optional*, defaults to 0.5): Without a target length, weight left at the end fires
            one more embedding if it exceeds this fraction of `threshold` (section 3.2, "tail handling").
        host_targets (`list[int]`, *optional*): `target_lengths` on the host, if none is negative. It spares a wait for the
            device. Compiled with it, the function is one graph, and a row without any weight fires zeros.

    Returns:
        [`CifOutput`]

    Raises:
        `ValueError`: If shapes disagree or `threshold` is not positive.
    """
    _check_arguments(hidden_states, alphas, attention_mask, threshold, target_lengths)
    weights = token_weights(alphas, attention_mask, threshold)
    ends = weights.cumsum(-1)
    quantities = ends[:, -1] if ends.shape[1] else ends.sum(-1)
    lengths = count_fires(quantities, tail_threshold)
    has_target = torch.zeros_like(lengths, dtype=torch.bool)
    if target_lengths is not None:
        targets = target_lengths.to(device=ends.device, dtype=torch.long)
        has_target, has_weight = targets >= 0, quantities.detach() > 0
        # The shapes of a graph must not depend on the weights.
        fires_always = torch.compiler.is_compiling() and host_targets is not None
        lengths = torch.where(has_target, targets if fires_always else torch.where(has_weight, targets, 0), lengths)
        scale = torch.where(has_target, lengths / torch.where(has_weight, quantities, 1.0), 1.0)[:, None]
        weights, ends = weights * scale, ends * scale
    runs = _find_runs(weights, ends, torch.zeros_like(lengths), lengths, has_target, host_targets)
    embeds = _sum_runs(hidden_states, attention_mask, runs, runs.overlaps * threshold)
    return CifOutput(
        embeds=embeds.to(hidden_states.dtype),
        lengths=lengths,
        fire_times=runs.fire_times.to(torch.float32),
        quantities=quantities.to(torch.promote_types(alphas.dtype, torch.float32)),
        alphas=alphas if attention_mask is None else alphas.masked_fill(attention_mask == 0, 0.0),
        host_lengths=runs.host_lengths,
    )


@dataclass
class CifState:
    """
    What [`integrate_and_fire_chunk`] carries from one chunk to the next.

    Attributes:
        total (`torch.Tensor` of shape `(batch_size,)`): Weight since the start, in units of the threshold; float64.
        num_frames (`torch.LongTensor` of shape `(batch_size,)`): Real frames since the start.
        partial (`torch.Tensor` of shape `(batch_size, hidden_size)`): Integral of the embedding that is not yet full.
    """

    total: torch.Tensor
    num_frames: torch.Tensor
    partial: torch.Tensor


def integrate_and_fire_chunk(
    hidden_states: torch.Tensor,
    alphas: torch.Tensor,
    state: CifState | None = None,
    attention_mask: torch.Tensor | None = None,
    threshold: float = 1.0,
    tail_threshold: float = 0.5,
    is_last: bool = False,
) -> tuple[CifOutput, CifState]:
    """
    [`integrate_and_fire`] for frames that arrive in chunks: over all chunks it fires the same embeddings.

    Args:
        hidden_states, alphas, attention_mask, threshold, tail_threshold: See [`integrate_and_fire`]; the next frames of
            each row, padded on the right.
        state ([`CifState`], *optional*): As the previous chunk returned it; absent for the first.
        is_last (`bool`, *optional*, defaults to `False`): Whether to fire the tail that is left after these frames.

    Returns:
        `tuple`: [`CifOutput`] of the embeddings that these frames complete, with fire times from the start of the row and
        `quantities` since then, and the [`CifState`] for the next chunk.

    Raises:
        `ValueError`: As [`integrate_and_fire`].
    """
    _check_arguments(hidden_states, alphas, attention_mask, threshold, None)
    weights = token_weights(alphas, attention_mask, threshold)
    batch_size, _, hidden_size = hidden_states.shape
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    if state is None:
        state = CifState(
            total=weights.new_zeros(batch_size),
            num_frames=torch.zeros(batch_size, dtype=torch.long, device=weights.device),
            partial=hidden_states.new_zeros(batch_size, hidden_size, dtype=dtype),
        )
    fired = state.total.detach().floor().long()
    # The unfinished token of the previous chunk becomes one frame before this chunk.
    weights = torch.cat([(state.total - fired)[:, None], weights], dim=1)
    ends = torch.cat([state.total[:, None], weights[:, 1:]], dim=1).cumsum(-1)
    frames = torch.cat([state.partial[:, None], hidden_states.to(dtype)], dim=1)
    mask = attention_mask if attention_mask is not None else torch.ones_like(alphas, dtype=torch.bool)
    mask = F.pad(mask.bool(), (1, 0), value=True)

    # Every row has its fired tokens and one unfinished token.
    total = ends[:, -1]
    num_full = total.detach().floor().long() - fired
    takes_rest = torch.ones_like(num_full, dtype=torch.bool)
    runs = _find_runs(weights, ends, fired, num_full + 1, takes_rest)
    # The unfinished part is integrated already.
    pair_weights = torch.where(runs.pair_frame == 0, 1.0, runs.overlaps * threshold)
    embeds = _sum_runs(frames, mask, runs, pair_weights)

    is_unfinished = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
    is_unfinished[(num_full + 1).cumsum(0) - 1] = True
    has_tail = (total.detach() - total.detach().floor() > tail_threshold) & is_last
    is_fired = ~is_unfinished | has_tail[runs.row]
    fire_times = runs.fire_times - 1 + state.num_frames[runs.row]
    output = CifOutput(
        embeds=embeds[is_fired].to(hidden_states.dtype),
        lengths=num_full + has_tail,
        fire_times=fire_times[is_fired].to(torch.float32),
        quantities=total.to(torch.promote_types(alphas.dtype, torch.float32)),
        alphas=alphas if attention_mask is None else alphas.masked_fill(attention_mask == 0, 0.0),
    )
    num_seen = state.num_frames + mask[:, 1:].sum(-1)
    return output, CifState(total=total, num_frames=num_seen, partial=embeds[is_unfinished])


@dataclass
class _Runs:
    """
    Which frames make up which token. A token is a run of consecutive frames; a pair is one frame of one run.

    `row` and `fire_times` are packed over tokens, `pair_*` and `overlaps` over pairs, and `starts` holds the first pair
    of each token. `pair_token` is the token of a pair, and `pair_fire` the frame in which that token fires. `host_lengths`
    are the tokens of each row.
    """

    row: torch.Tensor
    fire_times: torch.Tensor
    starts: torch.Tensor
    pair_row: torch.Tensor
    pair_token: torch.Tensor
    pair_frame: torch.Tensor
    pair_fire: torch.Tensor
    overlaps: torch.Tensor
    host_lengths: list[int]


def _check_arguments(hidden_states, alphas, attention_mask, threshold, target_lengths) -> None:
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


def token_weights(alphas: torch.Tensor, attention_mask: torch.Tensor | None, threshold: float) -> torch.Tensor:
    """Weights in tokens, zero where masked. In float32 a scaled sum lands beside its target in half of random rows."""
    accumulator = torch.float32 if alphas.device.type == "mps" else torch.float64
    if attention_mask is not None:
        alphas = alphas.masked_fill(attention_mask == 0, 0.0)
    return alphas.to(accumulator) / threshold


def count_fires(quantities: torch.Tensor, tail_threshold: float) -> torch.Tensor:
    """Embeddings that rows fire without a target length, given the sums of their weights in tokens."""
    quantities = quantities.detach()
    whole = quantities.floor()
    return (whole + (quantities - whole > tail_threshold)).long()


def _find_runs(
    weights: torch.Tensor,
    ends: torch.Tensor,
    first_token: torch.Tensor,
    lengths: torch.Tensor,
    takes_rest: torch.Tensor,
    host_targets: list[int] | None = None,
) -> _Runs:
    """
    Overlaps of frames `[ends - weights, ends]` with tokens `[k, k + 1]`, for `lengths` tokens a row from `first_token`.

    In the rows of `takes_rest`, the last token takes all the weight that is left. No row has more tokens than `host_targets`.
    """
    batch_size, num_frames = weights.shape
    device = weights.device
    known = read_together(lengths=lengths)["lengths"] if host_targets is None else host_targets
    max_tokens = max([0, *known])

    # A token begins in the first frame that ends beyond its lower bound and fires in the first that reaches its upper.
    # A bound beyond the sum, such as a tail's bound, belongs to the last frame with a nonzero weight, never to padding.
    detached_ends = ends.detach()
    bounds = first_token[:, None] + torch.arange(max_tokens + 1, device=device)
    bounds = bounds.to(ends.dtype)
    if num_frames:
        bounds = torch.minimum(bounds, detached_ends[:, -1:])
    fires = torch.searchsorted(detached_ends, bounds)[:, 1:]
    # Rounding in the last ulp may put a token's begin behind its own fire; it then lies in one frame.
    begins = torch.minimum(torch.searchsorted(detached_ends, bounds, right=True)[:, :-1], fires)
    if torch.compiler.is_compiling() and host_targets is not None:
        # Tokens share frames with their neighbours alone, so there are not more pairs.
        host_lengths, num_pairs = known, sum(known) + batch_size * num_frames if sum(known) else 0
    else:
        is_token = torch.arange(max_tokens, device=device) < lengths[:, None]
        read = read_together(lengths=lengths, num_pairs=(fires - begins + 1).masked_fill(~is_token, 0).sum())
        host_lengths, num_pairs = read["lengths"], read["num_pairs"][0]

    num_tokens = sum(host_lengths)
    row = torch.repeat_interleave(torch.arange(batch_size, device=device), lengths, output_size=num_tokens)
    index = torch.arange(num_tokens, device=device) - (lengths.cumsum(0) - lengths)[row]
    begin, fire = begins[row, index], fires[row, index]
    run_lengths = fire - begin + 1
    starts = run_lengths.cumsum(0) - run_lengths
    # If there are fewer pairs than places, the last token fills the rest with its last frame, without weight.
    num_filled = (num_pairs - run_lengths.sum()) * (torch.arange(num_tokens, device=device) == num_tokens - 1)
    repeats = run_lengths + num_filled
    pair_token = torch.repeat_interleave(torch.arange(num_tokens, device=device), repeats, output_size=num_pairs)
    pair_row = row[pair_token]
    pair_place = torch.arange(num_pairs, device=device) - starts[pair_token]
    pair_frame = torch.minimum(begin[pair_token] + pair_place, fire[pair_token])

    lower = (first_token[row] + index).to(ends.dtype)
    upper = lower + 1
    upper = torch.where((index + 1 == lengths[row]) & takes_rest[row], torch.inf, upper)
    frame_ends = ends[pair_row, pair_frame]
    frame_starts = frame_ends - weights[pair_row, pair_frame]
    overlaps = torch.minimum(frame_ends, upper[pair_token]) - torch.maximum(frame_starts, lower[pair_token])

    with torch.no_grad():
        fire_ends, fire_weights = ends[row, fire], weights[row, fire]
        into_frame = (lower + 1 - fire_ends + fire_weights) / fire_weights.clamp(min=torch.finfo(ends.dtype).tiny)
        fire_times = fire + into_frame.clamp(0, 1)
    overlaps = overlaps.clamp(min=0).masked_fill(pair_place >= run_lengths[pair_token], 0.0)
    pairs = (pair_row, pair_token, pair_frame, fire[pair_token], overlaps)
    return _Runs(row, fire_times, starts, *pairs, host_lengths)


def _sum_runs(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, runs: _Runs, pair_weights: torch.Tensor
) -> torch.Tensor:
    """Weighted sum of the frames of each run, packed, of shape `(num_tokens, hidden_size)`, in float32 or wider."""
    batch_size, num_frames, hidden_size = hidden_states.shape
    pair_frame = runs.pair_frame
    if attention_mask is not None:
        # The weight of a masked frame is zero, but zero times NaN or infinity is not zero.
        is_real = attention_mask[runs.pair_row, pair_frame] != 0
        pair_frame = torch.where(is_real, pair_frame, runs.pair_fire)
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    frames = hidden_states.to(dtype).reshape(batch_size * num_frames, hidden_size)
    pair_weights = pair_weights.to(dtype)
    embeds = F.embedding_bag(
        runs.pair_row * num_frames + pair_frame,
        frames.detach(),
        runs.starts,
        mode="sum",
        per_sample_weights=pair_weights,
    )
    if not (torch.is_grad_enabled() and frames.requires_grad):
        return embeds
    # Pairs in the order of tokens are in the order of frames too.
    pairs_per_frame = count_rows(runs.pair_row * num_frames + runs.pair_frame, batch_size * num_frames)
    frame_starts = pairs_per_frame.cumsum(0) - pairs_per_frame
    return _FrameGradient.apply(embeds, frames, pair_weights.detach(), runs.pair_token, frame_starts)


class _FrameGradient(torch.autograd.Function):
    """
    Returns `embeds` as they are and gives `frames` their gradient.

    A frame belongs to a run of tokens as a token belongs to a run of frames, so that the gradient is a weighted sum over
    runs as well, written once. The backward of `embedding_bag` would fill it with zeros and scatter into it.
    """

    @staticmethod
    def forward(ctx, embeds, frames, pair_weights, pair_token, frame_starts):
        ctx.save_for_backward(pair_weights, pair_token, frame_starts)
        return embeds.view_as(embeds)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        pair_weights, pair_token, frame_starts = ctx.saved_tensors
        grad_frames = F.embedding_bag(
            pair_token, grad.contiguous(), frame_starts, mode="sum", per_sample_weights=pair_weights
        )
        return grad, grad_frames, None, None, None


def quantity_loss(
    quantities: torch.Tensor, target_lengths: torch.Tensor, num_tokens: torch.Tensor | int | None = None
) -> torch.Tensor:
    """
    `sum(|quantity - target|) / num_tokens` (arXiv 1905.11235, section 3.2), the mean count error per target token.

    Dividing by tokens and not by recordings makes it comparable between languages and lengths, and additive over
    gradient accumulation.

    Args:
        quantities (`torch.Tensor` of shape `(batch_size,)`): Predicted numbers of tokens.
        target_lengths (`torch.LongTensor` of shape `(batch_size,)`): True numbers of tokens. Rows in which it is negative are
            left out, because their number is unknown.
        num_tokens (`torch.Tensor` or `int`, *optional*): Divisor; defaults to the sum of the true numbers, at least 1.

    Returns:
        `torch.Tensor`: A scalar.
    """
    if num_tokens is None:
        num_tokens = target_lengths.clamp(min=0).sum().clamp(min=1)
    return (quantities - target_lengths).abs().masked_fill(target_lengths < 0, 0.0).sum() / num_tokens


class AlphaProjection(nn.Linear):
    """
    The linear layer before the sigmoid of the weights. It is a class of its own because Transformers initialises a
    module of foreign code only if it has parameters, and its bias sets the firing rate of an untrained model.

    Args:
        hidden_size (`int`): Channels of the frames.
        initial_sigmoid (`float`): What the sigmoid gives on average before training.
    """

    def __init__(self, hidden_size: int, initial_sigmoid: float):
        super().__init__(hidden_size, 1)
        # A sigmoid cannot leave (0, 1), and at its ends it would not learn.
        initial_sigmoid = min(max(initial_sigmoid, 0.01), 0.99)
        self.initial_bias = math.log(initial_sigmoid / (1 - initial_sigmoid))


class ContinuousIntegrateAndFire(nn.Module):
    """
    Predicts a weight for each frame and integrates the frames into embeddings.

    The weights come from a convolution that sees both sides of a frame, a linear layer and a sigmoid (arXiv 1905.11235,
    section 3.1): `alpha = relu(smooth_factor * sigmoid(x) - noise_threshold)`.

    Args:
        hidden_size (`int`): Channels of the frames.
        kernel_size (`int`): Kernel of the weight predictor, in frames; odd.
        threshold, tail_threshold (`float`): See [`integrate_and_fire`].
        initial_alpha (`float`): Weight that the untrained predictor gives to a frame, on average.
        smooth_factor, noise_threshold (`float`, *optional*): See [`LlmAsrProjectorConfig`].
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int,
        threshold: float,
        tail_threshold: float,
        initial_alpha: float,
        smooth_factor: float = 1.0,
        noise_threshold: float = 0.0,
    ):
        super().__init__()
        self.threshold = threshold
        self.tail_threshold = tail_threshold
        self.smooth_factor = smooth_factor
        self.noise_threshold = noise_threshold
        self.conv = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding=kernel_size // 2)
        self.alpha_proj = AlphaProjection(hidden_size, (initial_alpha + noise_threshold) / smooth_factor)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        target_lengths: torch.Tensor | None = None,
        host_targets: list[int] | None = None,
    ) -> CifOutput:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`): Frames.
            attention_mask (`torch.BoolTensor` of shape `(batch_size, num_frames)`): True for real frames.
            target_lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Numbers of embeddings to fire.
            host_targets (`list[int]`, *optional*): See [`integrate_and_fire`].
        """
        attention_mask = attention_mask.to(hidden_states.device)
        visible = hidden_states.masked_fill(~attention_mask[:, :, None], 0.0)
        alphas = self.weigh(self.conv(visible.transpose(1, 2)).transpose(1, 2)).to(visible.device)
        return integrate_and_fire(
            visible, alphas, attention_mask, self.threshold, target_lengths, self.tail_threshold, host_targets
        )

    def weigh(self, context: torch.Tensor) -> torch.Tensor:
        """Weights of frames, float32 or wider, from the output of the convolution, whose last dimension is that of channels."""
        logits = self.alpha_proj(F.relu(context)).squeeze(-1)
        alphas = torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        return F.relu(self.smooth_factor * alphas - self.noise_threshold)
