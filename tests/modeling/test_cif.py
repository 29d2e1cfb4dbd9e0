import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_asr.modeling.cif import (
    ContinuousIntegrateAndFire,
    integrate_and_fire,
    integrate_and_fire_chunk,
    quantity_loss,
)


# Derandomised, so that all runs draw the same cases.
MANY = settings(max_examples=1000, deadline=None, derandomize=True)
HIDDEN_SIZE = 3


def fire_sequentially(frames, alphas, threshold, target_length, tail_threshold):
    """
    Compute one row with the recurrence of arXiv 1905.11235, frame by frame, in Python floats (float64).

    Returns the embeddings, the time at which each fired, and the predicted quantity.
    """
    alphas = [float(alpha) for alpha in alphas]
    total = sum(alphas)
    scale = 1.0
    if target_length is not None:
        scale = target_length * threshold / total if total > 0 else 0.0
    last_weighted = max((t for t, alpha in enumerate(alphas) if alpha > 0), default=-1)
    # With a target, the end of the row closes the last embedding. A comparison could fail because of rounding.
    num_to_fire = float("inf") if target_length is None else target_length - 1

    embeds, times = [], []
    accumulated, state = 0.0, torch.zeros(frames.shape[1], dtype=torch.float64)
    for t, alpha in enumerate(alphas):
        remaining = weight = alpha * scale
        while weight > 0 and accumulated + remaining >= threshold and len(embeds) < num_to_fire:
            portion = threshold - accumulated
            embeds.append(state + portion * frames[t])
            remaining -= portion
            times.append(t + (weight - remaining) / weight)
            accumulated, state = 0.0, torch.zeros_like(state)
        if weight > 0:
            accumulated, state = accumulated + remaining, state + remaining * frames[t]
    has_tail = accumulated > tail_threshold * threshold if target_length is None else target_length > 0 < total
    if has_tail:
        embeds.append(state)
        times.append(last_weighted + 1.0)
    return embeds, times, total / threshold


def assert_matches_sequential(hidden_states, alphas, mask, threshold, targets, tail_threshold):
    """Compare with the sequential reference. `hidden_states` and `alphas` may have any values where `mask` is False."""
    output = integrate_and_fire(hidden_states, alphas, mask, threshold, targets, tail_threshold)
    embeds, times, lengths, quantities = [], [], [], []
    for row in range(len(alphas)):
        # Masked frames keep their places without weight, so that they count in times.
        visible = mask[row]
        fired = fire_sequentially(
            torch.where(visible[:, None], hidden_states[row], 0.0).double(),
            torch.where(visible, alphas[row], 0.0),
            threshold,
            None if targets is None else int(targets[row]),
            tail_threshold,
        )
        embeds += fired[0]
        times += fired[1]
        lengths.append(len(fired[0]))
        quantities.append(fired[2])
    assert output.lengths.tolist() == lengths
    expected = torch.stack(embeds) if embeds else torch.zeros(0, HIDDEN_SIZE, dtype=torch.float64)
    torch.testing.assert_close(output.embeds, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(output.fire_times.double(), torch.tensor(times).double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(output.quantities, torch.tensor(quantities, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(output.alphas, alphas.masked_fill(~mask, 0.0))


def make_mask(generator, num_rows, num_frames, padding_side):
    """A mask with rows of every length, including zero."""
    lengths = torch.randint(0, num_frames + 1, (num_rows,), generator=generator)
    lengths[torch.randint(num_rows, (1,), generator=generator)] = num_frames
    mask = torch.arange(num_frames) < lengths[:, None]
    return mask.flip(1) if padding_side == "left" else mask


def soil(hidden_states, alphas, mask, value):
    """Overwrite masked values with `value`."""
    return hidden_states.masked_fill(~mask[:, :, None], value), alphas.masked_fill(~mask, value)


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "num_rows": st.integers(1, 4),
        "num_frames": st.one_of(st.just(1), st.integers(1, 30)),
        "padding_side": st.sampled_from(["left", "right"]),
        "garbage": st.sampled_from([0.0, 1e30, float("nan"), float("inf"), float("-inf")]),
        "share_of_zeros": st.sampled_from([0.0, 0.3, 0.9]),
        "tail_threshold": st.sampled_from([0.1, 0.5, 0.9]),
    }
)


def draw_frames(case):
    generator = torch.Generator().manual_seed(case["seed"])
    shape = case["num_rows"], case["num_frames"]
    hidden_states = torch.randn(*shape, HIDDEN_SIZE, generator=generator, dtype=torch.float64)
    alphas = torch.rand(shape, generator=generator, dtype=torch.float64)
    is_zero = torch.rand(shape, generator=generator) < case["share_of_zeros"]
    mask = make_mask(generator, *shape, case["padding_side"])
    return generator, hidden_states, alphas, is_zero, mask


@MANY
@given(case=cases, threshold=st.sampled_from([0.3, 0.7, 1.0, 2.5]), largest_alpha=st.sampled_from([0.2, 1.0, 5.0]))
def test_equals_the_sequential_reference(case, threshold, largest_alpha):
    _, hidden_states, alphas, is_zero, mask = draw_frames(case)
    alphas = (alphas * largest_alpha).masked_fill(is_zero, 0.0)
    fractions = (alphas.masked_fill(~mask, 0.0).sum(-1) / threshold) % 1
    # Close to these two points, rounding decides whether an embedding fires.
    assume(bool(((fractions - case["tail_threshold"]).abs() > 1e-9).all()))
    hidden_states, alphas = soil(hidden_states, alphas, mask, case["garbage"])
    assert_matches_sequential(hidden_states, alphas, mask, threshold, None, case["tail_threshold"])


@MANY
@given(case=cases, threshold=st.sampled_from([0.5, 1.0, 2.0]))
def test_equals_the_sequential_reference_where_sums_hit_the_threshold(case, threshold):
    """Multiples of 1/8 are summed without rounding, so embeddings end exactly at the ends of frames."""
    _, hidden_states, alphas, is_zero, mask = draw_frames(case)
    alphas = ((alphas * 24).round() / 8).masked_fill(is_zero, 0.0)
    hidden_states, alphas = soil(hidden_states, alphas, mask, case["garbage"])
    assert_matches_sequential(hidden_states, alphas, mask, threshold, None, tail_threshold=0.5)


@MANY
@given(case=cases, threshold=st.sampled_from([0.3, 1.0, 2.5]), largest_target=st.sampled_from([2, 60]))
def test_equals_the_sequential_reference_with_target_lengths(case, threshold, largest_target):
    generator, hidden_states, alphas, is_zero, mask = draw_frames(case)
    alphas = alphas.masked_fill(is_zero, 0.0)
    targets = torch.randint(0, largest_target + 1, (len(alphas),), generator=generator)
    hidden_states, alphas = soil(hidden_states, alphas, mask, case["garbage"])
    assert_matches_sequential(hidden_states, alphas, mask, threshold, targets, case["tail_threshold"])


@pytest.mark.parametrize("targets", [None, torch.tensor([4, 3])])
@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
def test_masked_frames_between_valid_frames_have_no_weight(garbage, targets):
    """An embedding may begin before such a frame and end after it."""
    mask = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1], [0, 1, 0, 1, 1, 1, 1, 0]]).bool()
    hidden_states = torch.randn(2, 8, HIDDEN_SIZE, dtype=torch.float64)
    alphas = torch.rand(2, 8, dtype=torch.float64)
    assert_matches_sequential(*soil(hidden_states, alphas, mask, garbage), mask, 1.0, targets, 0.5)


def test_equals_an_example_computed_by_hand():
    """0.6 + 0.4 of 0.8 | 0.4 + 0.6 of 2.0 | 1.0 of 2.0 | 0.4 of 2.0 + 0.3, a tail above one half."""
    hidden_states = torch.tensor([[[1.0], [10.0], [100.0], [1000.0], [10000.0]]], dtype=torch.float64)
    alphas = torch.tensor([[0.6, 0.8, 2.0, 0.0, 0.3]], dtype=torch.float64)
    output = integrate_and_fire(hidden_states, alphas)
    assert output.lengths.tolist() == [4]
    expected = torch.tensor([[4.6], [64.0], [100.0], [3040.0]], dtype=torch.float64)
    torch.testing.assert_close(output.embeds, expected)
    torch.testing.assert_close(output.fire_times, torch.tensor([1.5, 2.3, 2.8, 5.0]))
    assert output.quantities.item() == pytest.approx(3.7)


def test_a_small_tail_is_dropped():
    hidden_states = torch.ones(2, 3, 1)
    alphas = torch.tensor([[0.5, 0.5, 0.375], [0.5, 0.5, 0.625]])
    assert integrate_and_fire(hidden_states, alphas).lengths.tolist() == [1, 2]
    assert integrate_and_fire(hidden_states, alphas, tail_threshold=0.25).lengths.tolist() == [2, 2]


@pytest.mark.parametrize("target_lengths", [None, torch.tensor([2, 3])])
@pytest.mark.parametrize("threshold", [1.0, 0.7])
def test_gradcheck(threshold, target_lengths):
    hidden_states = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    alphas = (torch.rand(2, 5, dtype=torch.float64) + 0.1).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()

    def embeds_and_quantities(hidden_states, alphas):
        output = integrate_and_fire(hidden_states, alphas, mask, threshold, target_lengths)
        return output.embeds, output.quantities

    assert torch.autograd.gradcheck(embeds_and_quantities, (hidden_states, alphas))


@pytest.mark.parametrize("target_lengths", [None, torch.tensor([2, 3])])
def test_padding_has_no_gradient_and_affects_no_other_gradient(target_lengths):
    mask = torch.arange(6) < torch.tensor([[6], [4]])
    clean = [torch.randn(2, 6, HIDDEN_SIZE), torch.rand(2, 6) + 0.2]
    gradients = []
    for garbage in (0.0, float("nan")):
        hidden_states, alphas = (tensor.requires_grad_() for tensor in soil(*clean, mask, garbage))
        output = integrate_and_fire(hidden_states, alphas, mask, target_lengths=target_lengths)
        (output.embeds.square().sum() + output.quantities.sum()).backward()
        gradients.append((hidden_states.grad, alphas.grad))
        assert not hidden_states.grad[~mask].any()
        assert not alphas.grad[~mask].any()
        assert alphas.grad[mask].all()
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("threshold", [1.0, 0.6])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 7, 30, 101, 400, 1499, 1500, 4000])
def test_fires_exactly_the_target_number_each_of_unit_mass(num_tokens, threshold):
    """Integrating ones gives the mass. The scaled sum of these float32 weights would miss N in about half of the rows."""
    alphas = torch.rand(8, 1500)
    targets = torch.full((8,), num_tokens)
    output = integrate_and_fire(torch.ones(8, 1500, 1), alphas, threshold=threshold, target_lengths=targets)
    assert output.lengths.tolist() == targets.tolist()
    torch.testing.assert_close(output.embeds, torch.full((8 * num_tokens, 1), threshold), rtol=1e-5, atol=0)


def test_extreme_weights_still_fire_the_target():
    alphas = torch.stack([torch.full((50,), 1e-30), torch.full((50,), 1e6), torch.tensor([1.0] + [1e-12] * 49)])
    output = integrate_and_fire(torch.ones(3, 50, 1), alphas, target_lengths=torch.tensor([9, 9, 9]))
    assert output.lengths.tolist() == [9, 9, 9]
    torch.testing.assert_close(output.embeds, torch.ones(27, 1))


@MANY
@given(case=cases, with_targets=st.booleans())
def test_rows_do_not_depend_on_other_rows(case, with_targets):
    generator, hidden_states, alphas, is_zero, mask = draw_frames(case)
    alphas = alphas.masked_fill(is_zero, 0.0)
    targets = torch.randint(0, 9, (len(alphas),), generator=generator) if with_targets else None
    together = integrate_and_fire(hidden_states, alphas, mask, target_lengths=targets)
    lengths = together.lengths.tolist()
    embeds_of_rows, times_of_rows = together.embeds.split(lengths), together.fire_times.split(lengths)
    for row, (embeds, times) in enumerate(zip(embeds_of_rows, times_of_rows, strict=True)):
        target = None if targets is None else targets[row : row + 1]
        real = mask[row]
        alone = integrate_and_fire(hidden_states[row][real][None], alphas[row][real][None], target_lengths=target)
        offset = int(real.int().argmax()) if real.any() else 0
        assert alone.lengths.tolist() == [lengths[row]]
        torch.testing.assert_close(alone.embeds, embeds, rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.fire_times + offset, times)


@MANY
@given(case=cases, with_targets=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_fire_times_increase_within_the_valid_part_of_the_row(case, with_targets, dtype):
    generator, hidden_states, alphas, is_zero, mask = draw_frames(case)
    alphas = (3 * alphas).masked_fill(is_zero, 0.0).to(dtype)
    targets = torch.randint(0, 50, (len(alphas),), generator=generator) if with_targets else None
    output = integrate_and_fire(hidden_states.to(dtype), alphas, mask, target_lengths=targets)
    for row, times in enumerate(output.fire_times.split(output.lengths.tolist())):
        assert (times.diff() >= 0).all()
        if len(times):
            frames = mask[row].nonzero()
            assert times[0] > frames[0]
            assert times[-1] <= frames[-1] + 1


@pytest.mark.parametrize("target_lengths", [None, torch.tensor([40, 0, 1])])
def test_bfloat16_accumulates_in_float32(target_lengths):
    hidden_states = torch.randn(3, 2000, 4).bfloat16()
    alphas = (0.3 * torch.rand(3, 2000)).bfloat16()
    narrow = integrate_and_fire(hidden_states, alphas, target_lengths=target_lengths)
    wide = integrate_and_fire(hidden_states.float(), alphas.float(), target_lengths=target_lengths)
    assert narrow.embeds.dtype == torch.bfloat16
    assert narrow.quantities.dtype == torch.float32
    assert narrow.lengths.tolist() == wide.lengths.tolist()
    torch.testing.assert_close(narrow.quantities, wide.quantities)
    torch.testing.assert_close(narrow.fire_times, wide.fire_times)
    assert torch.equal(narrow.embeds, wide.embeds.bfloat16())


@pytest.mark.parametrize(("num_rows", "num_frames"), [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("with_targets", [True, False])
def test_empty_batches_and_rows_fire_nothing(num_rows, num_frames, with_targets):
    hidden_states = torch.randn(num_rows, num_frames, HIDDEN_SIZE, requires_grad=True)
    alphas = torch.rand(num_rows, num_frames)
    targets = torch.ones(num_rows, dtype=torch.long) if with_targets else None
    output = integrate_and_fire(hidden_states, alphas, target_lengths=targets)
    assert output.embeds.shape == (0, HIDDEN_SIZE)
    assert output.lengths.tolist() == [0] * num_rows
    output.embeds.sum().backward()


@pytest.mark.parametrize("targets", [None, torch.tensor([3, 2])])
def test_rows_without_weight_fire_nothing_and_give_finite_gradients(targets):
    hidden_states = torch.randn(2, 5, HIDDEN_SIZE, requires_grad=True)
    alphas = torch.zeros(2, 5).index_fill(0, torch.tensor([1]), 0.9).requires_grad_()
    output = integrate_and_fire(hidden_states, alphas, target_lengths=targets)
    assert output.lengths[0] == 0
    assert output.lengths[1] > 0
    (output.embeds.sum() + output.quantities.sum()).backward()
    assert hidden_states.grad.isfinite().all()
    assert alphas.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"alphas": torch.ones(2, 4)}, "alphas"),
        ({"hidden_states": torch.ones(2, 5)}, "hidden_states"),
        ({"attention_mask": torch.ones(2, 4)}, "attention_mask"),
        ({"target_lengths": torch.ones(3)}, "target_lengths"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": -1.0}, "threshold"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    valid = {"hidden_states": torch.ones(2, 5, 1), "alphas": torch.ones(2, 5)}
    with pytest.raises(ValueError, match=f"`{name}`"):
        integrate_and_fire(**{**valid, **arguments})


def test_quantity_loss_is_the_mean_error_per_target_token():
    quantities = torch.tensor([2.5, 7.0, 0.25], requires_grad=True)
    targets = torch.tensor([3, 5, 0])
    assert quantity_loss(quantities, targets).item() == pytest.approx((0.5 + 2.0 + 0.25) / 8)
    loss = quantity_loss(quantities, targets, num_tokens=11)
    assert loss.item() == pytest.approx(2.75 / 11)
    loss.backward()
    torch.testing.assert_close(quantities.grad, torch.tensor([-1.0, 1.0, 1.0]) / 11)


def test_quantity_loss_without_any_target_is_finite():
    assert quantity_loss(torch.tensor([2.0]), torch.tensor([0])).item() == 2.0


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_untrained_module_fires_at_about_its_initial_rate(threshold):
    module = ContinuousIntegrateAndFire(8, 3, threshold, tail_threshold=0.5, initial_alpha=0.125)
    torch.nn.init.normal_(module.alpha_proj.weight, std=1e-3)
    torch.nn.init.constant_(module.alpha_proj.bias, module.alpha_proj.initial_bias)
    output = module(torch.randn(1, 80, 8), torch.ones(1, 80, dtype=torch.bool))
    torch.testing.assert_close(output.quantities, torch.tensor([10.0 / threshold]), rtol=0.02, atol=0)


def test_module_ignores_padding():
    module = ContinuousIntegrateAndFire(4, 5, threshold=1.0, tail_threshold=0.5, initial_alpha=0.4)
    hidden_states = torch.randn(1, 9, 4)
    alone = module(hidden_states, torch.ones(1, 9, dtype=torch.bool))
    padded = torch.cat([hidden_states, torch.full((1, 4, 4), float("nan"))], dim=1)
    inside = module(padded, (torch.arange(13) < 9)[None])
    assert inside.lengths.tolist() == alone.lengths.tolist()
    torch.testing.assert_close(inside.embeds, alone.embeds)
    torch.testing.assert_close(inside.alphas[:, :9], alone.alphas)
    assert not inside.alphas[:, 9:].any()


def random_cuts(num_frames, generator):
    num_cuts = int(torch.randint(0, 5, (), generator=generator))
    cuts = torch.randint(0, num_frames + 1, (num_cuts,), generator=generator)
    return [*sorted(cuts.tolist()), num_frames]


@pytest.mark.parametrize("threshold", [1.0, 0.7])
def test_chunks_fire_the_same_as_the_whole_recording(threshold):
    """The results are equal to the bit, because chunks add frames in the same order as the whole."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        num_frames = int(torch.randint(1, 60, (), generator=generator))
        hidden_states = torch.randn(3, num_frames, 5, dtype=torch.float64, generator=generator)
        scale = 2.5 * float(torch.rand((), generator=generator))
        alphas = scale * torch.rand(3, num_frames, dtype=torch.float64, generator=generator)
        whole = integrate_and_fire(hidden_states, alphas, threshold=threshold)
        state, start = None, 0
        embeds, times = [[], [], []], [[], [], []]
        cuts = random_cuts(num_frames, generator)
        for index, end in enumerate(cuts):
            output, state = integrate_and_fire_chunk(
                hidden_states[:, start:end],
                alphas[:, start:end],
                state,
                threshold=threshold,
                is_last=index == len(cuts) - 1,
            )
            start = end
            lengths = output.lengths.tolist()
            for row in range(3):
                embeds[row].append(output.embeds.split(lengths)[row])
                times[row].append(output.fire_times.split(lengths)[row])
        assert torch.equal(torch.cat([torch.cat(row) for row in embeds]), whole.embeds)
        assert torch.equal(torch.cat([torch.cat(row) for row in times]), whole.fire_times)
        assert torch.equal(output.quantities, whole.quantities)


def test_chunks_may_be_padded_and_rows_may_pause():
    generator = torch.Generator().manual_seed(1)
    hidden_states = torch.randn(1, 12, 4, generator=generator)
    alphas = 0.6 * torch.rand(1, 12, generator=generator)
    whole = integrate_and_fire(hidden_states, alphas)
    garbage = torch.full((1, 3, 4), torch.nan)
    mask = torch.tensor([[True] * 6 + [False] * 3])
    first, state = integrate_and_fire_chunk(
        torch.cat([hidden_states[:, :6], garbage], 1), torch.cat([alphas[:, :6], torch.ones(1, 3)], 1), None, mask
    )
    nothing, state = integrate_and_fire_chunk(garbage, torch.ones(1, 3), state, torch.zeros(1, 3))
    assert nothing.lengths.tolist() == [0]
    rest, _ = integrate_and_fire_chunk(hidden_states[:, 6:], alphas[:, 6:], state, is_last=True)
    torch.testing.assert_close(torch.cat([first.embeds, rest.embeds]), whole.embeds)
    torch.testing.assert_close(torch.cat([first.fire_times, rest.fire_times]), whole.fire_times)


@pytest.mark.parametrize("seconds", [30, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_is_no_drift_over_long_recordings(seconds, dtype):
    """A constant weight of 0.1 at 50 frames per second fires every ten frames until the end."""
    num_frames = 50 * seconds
    hidden_states = torch.ones(1, num_frames, 2, dtype=dtype)
    alphas = torch.full((1, num_frames), 0.1, dtype=torch.float32)
    output = integrate_and_fire(hidden_states, alphas)
    num_tokens = num_frames // 10
    assert output.lengths.tolist() == [num_tokens]
    torch.testing.assert_close(output.embeds.float(), torch.ones(num_tokens, 2), rtol=0, atol=1e-6)
    expected = 10.0 * torch.arange(1, num_tokens + 1)
    # 0.1 in float32 is 1.5e-8 too large. The last fire moves by the sum of this error over all frames.
    torch.testing.assert_close(output.fire_times, expected, rtol=0, atol=1e-3)
    exact = integrate_and_fire(hidden_states, alphas, target_lengths=torch.tensor([num_tokens]))
    torch.testing.assert_close(exact.embeds.float(), torch.ones(num_tokens, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("smooth_factor", "noise_threshold"), [(1.0, 0.0), (1.5, 0.0), (1.0, 0.1), (2.0, 0.3)])
def test_smoothing_and_noise_keep_the_initial_rate(smooth_factor, noise_threshold):
    torch.manual_seed(0)
    module = ContinuousIntegrateAndFire(8, 3, 1.0, 0.5, 0.16, smooth_factor, noise_threshold)
    torch.nn.init.normal_(module.alpha_proj.weight, std=0.02)
    torch.nn.init.constant_(module.alpha_proj.bias, module.alpha_proj.initial_bias)
    output = module(torch.randn(2, 100, 8), torch.ones(2, 100, dtype=torch.bool))
    assert output.alphas.mean().item() == pytest.approx(0.16, rel=0.1)
    assert output.alphas.min() >= 0
