import pytest
import torch
from transformers.activations import ACT2FN

from llm_asr.modeling.mixture_of_experts import (
    MixtureOfExperts,
    grouped_matmul,
    load_balancing_loss,
    router_z_loss,
)


# Multiples of four, so that float32 rows begin at multiples of 16 bytes and the grouped kernel runs.
SIZES = {"in_size": 8, "expert_hidden_size": 12, "out_size": 16}


def make_experts(dtype=torch.float64, **options):
    defaults = {**SIZES, "num_experts": 5, "num_experts_per_tok": 2, "num_shared_experts": 0, "norm_topk_prob": True}
    moe = MixtureOfExperts(**{**defaults, **options}, hidden_act="gelu")
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return moe.to(dtype)


def apply_naively(moe, frames):
    """Every frame on its own and a loop over its experts."""
    act_fn = ACT2FN["gelu"]
    outputs = []
    for frame in frames:
        probabilities = (moe.router.weight @ frame).softmax(-1)
        chosen = probabilities.argsort(descending=True)[: moe.router.num_experts_per_tok].tolist()
        total = sum(probabilities[expert] for expert in chosen) if moe.router.norm_topk_prob else 1.0
        output = sum(
            probabilities[expert] / total * moe.experts.down_proj[expert] @ act_fn(moe.experts.up_proj[expert] @ frame)
            for expert in chosen
        )
        if moe.shared_experts is not None:
            up, _, down = moe.shared_experts
            output = output + down.weight @ act_fn(up.weight @ frame)
        outputs.append(output)
    return torch.stack(outputs)


def gradients(outputs, inputs):
    """Of a sum that weighs every output differently."""
    torch.manual_seed(1)
    return torch.autograd.grad((outputs * torch.randn_like(outputs)).sum(), inputs)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("num_shared_experts", [0, 2])
@pytest.mark.parametrize("num_experts_per_tok", [1, 2, 5])
def test_equals_a_loop_over_frames_and_experts(num_experts_per_tok, num_shared_experts, norm_topk_prob):
    moe = make_experts(
        num_experts_per_tok=num_experts_per_tok, num_shared_experts=num_shared_experts, norm_topk_prob=norm_topk_prob
    )
    frames = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    outputs, _ = moe(frames)
    expected = apply_naively(moe, frames)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    inputs = [frames, *moe.parameters()]
    actual = torch.autograd.grad(outputs.square().sum(), inputs, allow_unused=True)
    # One expert with a weight of one gives the router nothing to learn from.
    wanted = torch.autograd.grad(expected.square().sum(), inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_experts_are_the_dense_mixture(dtype):
    moe = make_experts(dtype, num_experts_per_tok=5)
    frames = torch.randn(11, 8, dtype=dtype)
    hidden = ACT2FN["gelu"](torch.einsum("ni,ehi->neh", frames, moe.experts.up_proj))
    outputs = torch.einsum("neh,eoh->neo", hidden, moe.experts.down_proj)
    weights = (frames @ moe.router.weight.T).softmax(-1)
    torch.testing.assert_close(moe(frames)[0], torch.einsum("ne,neo->no", weights, outputs))


@pytest.mark.parametrize("group_sizes", [[3, 4, 5], [0, 12, 0], [0, 0, 12], [1, 0, 11], [12, 0, 0]])
def test_grouped_kernel_equals_the_padded_fallback(group_sizes):
    """A matrix with a row less cannot go to the kernel, and must give the same columns but one."""
    rows = torch.randn(12, 8, requires_grad=True)
    weight = torch.randn(3, 16, 8, requires_grad=True)
    sizes = torch.tensor(group_sizes)
    grouped = grouped_matmul(rows, weight, sizes)[:, :15]
    padded = grouped_matmul(rows, weight[:, :15], sizes)
    torch.testing.assert_close(grouped, padded)
    torch.testing.assert_close(gradients(grouped, (rows, weight)), gradients(padded, (rows, weight)))
    expected = torch.cat([part @ matrix.T for part, matrix in zip(rows.split(group_sizes), weight, strict=True)])
    torch.testing.assert_close(grouped, expected[:, :15])


@pytest.mark.parametrize("in_size", [8, 7])
def test_float32_equals_float64(in_size):
    moe = make_experts(torch.float32, in_size=in_size, num_shared_experts=1)
    frames = torch.randn(40, in_size, requires_grad=True)
    outputs, router_logits = moe(frames)
    narrow = gradients(outputs, [frames, *moe.parameters()])
    moe = moe.double()
    wide_frames = frames.detach().double().requires_grad_()
    wide_outputs, wide_router_logits = moe(wide_frames)
    torch.manual_seed(1)
    weights = torch.randn_like(outputs).double()
    wide = torch.autograd.grad((wide_outputs * weights).sum(), [wide_frames, *moe.parameters()])
    torch.testing.assert_close(outputs, wide_outputs.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(router_logits, wide_router_logits.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(narrow, tuple(gradient.float() for gradient in wide), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_shared_experts", [0, 1])
@pytest.mark.parametrize(("dtype", "in_size"), [(torch.float32, 8), (torch.float32, 7), (torch.bfloat16, 8)])
def test_no_frames(dtype, in_size, num_shared_experts):
    moe = make_experts(dtype, in_size=in_size, num_shared_experts=num_shared_experts)
    outputs, router_logits = moe(torch.zeros(0, in_size, dtype=dtype, requires_grad=True))
    assert outputs.shape == (0, 16)
    assert router_logits.shape == (0, 5)
    loss = outputs.sum() + load_balancing_loss(router_logits, 2) + router_z_loss(router_logits)
    assert loss.item() == 0.0
    loss.backward()


def test_frames_do_not_depend_on_each_other():
    moe = make_experts(num_shared_experts=1)
    frames = torch.randn(9, 8, dtype=torch.float64)
    order = torch.randperm(9)
    torch.testing.assert_close(moe(frames[order])[0], moe(frames)[0][order])
    torch.testing.assert_close(moe(frames[4:5])[0], moe(frames)[0][4:5])


def test_router_stays_float32_under_bfloat16_autocast():
    moe = make_experts(torch.float32, num_shared_experts=1)
    frames = torch.randn(50, 8)
    expected, expected_logits = moe(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, router_logits = moe(frames)
    assert router_logits.dtype == torch.float32
    assert torch.equal(router_logits, expected_logits)
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.float(), expected, rtol=0.05, atol=0.2)


def test_bfloat16_parameters_route_in_float32():
    moe = make_experts(torch.bfloat16)
    frames = torch.randn(50, 8).bfloat16()
    outputs, router_logits = moe(frames)
    assert outputs.dtype == torch.bfloat16
    assert router_logits.dtype == torch.float32
    assert torch.equal(router_logits, frames.float() @ moe.router.weight.float().T)


def test_load_balancing_loss_is_one_when_balanced():
    """Four frames for four experts, and four times as many; and a router that does not care."""
    balanced = 3 * torch.eye(4).repeat(4, 1)
    assert load_balancing_loss(balanced, 1).item() == pytest.approx(1.0)
    assert load_balancing_loss(balanced + balanced.roll(1, dims=1), 2).item() == pytest.approx(1.0)
    assert load_balancing_loss(torch.zeros(10, 4), 2).item() == pytest.approx(1.0)


def test_load_balancing_loss_is_the_number_of_experts_when_collapsed():
    collapsed = torch.tensor([50.0, 0.0, 0.0, 0.0]).repeat(10, 1)
    assert load_balancing_loss(collapsed, 1).item() == pytest.approx(4.0)


@pytest.mark.parametrize("num_experts_per_tok", [1, 2, 3])
def test_load_balancing_loss_formula(num_experts_per_tok):
    router_logits = torch.randn(17, 4, dtype=torch.float64, requires_grad=True)
    probabilities = router_logits.softmax(-1)
    counts = [0] * 4
    for row in probabilities.tolist():
        for expert in sorted(range(4), key=row.__getitem__)[-num_experts_per_tok:]:
            counts[expert] += 1
    expected = 4 * sum(
        counts[expert] / (17 * num_experts_per_tok) * probabilities[:, expert].mean() for expert in range(4)
    )
    loss = load_balancing_loss(router_logits, num_experts_per_tok)
    # Shares are counts, in single precision.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        gradients(loss, router_logits), gradients(expected, router_logits), rtol=1e-5, atol=1e-9
    )


def test_router_z_loss_formula():
    router_logits = torch.randn(17, 4, dtype=torch.float64)
    expected = sum(row.exp().sum().log() ** 2 for row in router_logits) / 17
    torch.testing.assert_close(router_z_loss(router_logits), expected)
    assert router_z_loss(torch.zeros(3, 4)).item() == pytest.approx(torch.tensor(4.0).log().item() ** 2)
    assert router_z_loss(torch.full((2, 4), 1e4)).isfinite()
