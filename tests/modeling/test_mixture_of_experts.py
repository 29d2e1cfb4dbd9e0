import pytest
import torch
from transformers.activations import ACT2FN

from llm_asr import LlmAsrConfig, LlmAsrProjectorConfig
from llm_asr.modeling.mixture_of_experts import can_use_grouped_mm, grouped_matmul, mean_of_recordings
from llm_asr.modeling.text_projection import build_experts


# The sizes are multiples of four, so that float32 rows start at multiples of 16 bytes. The grouped kernel requires this.
SIZES = {"hidden_size": 8, "expert_hidden_size": 12, "out_size": 16}


def make_experts(dtype=torch.float64, seed=0, **options):
    options = {
        **SIZES,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "hidden_act": "gelu",
        **options,
    }
    out_size = options.pop("out_size")
    config = LlmAsrConfig(
        text_config={"model_type": "qwen2", "hidden_size": out_size},
        projector_config=LlmAsrProjectorConfig(projector_type="moe", **options),
    )
    moe = build_experts(config)
    torch.manual_seed(seed)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return moe.to(dtype).eval()


def route(moe, frames, lengths=None):
    """Outputs and router logits of frames. By default all frames are one recording."""
    outputs, routing = moe(frames, torch.tensor([len(frames)] if lengths is None else lengths))
    return outputs, routing.router_logits


def apply_naively(moe, frames):
    """Compute each frame separately with a loop over its experts."""
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
    """Gradients of a sum with a different weight for every output."""
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
    outputs, _ = route(moe, frames)
    expected = apply_naively(moe, frames)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    inputs = [frames, *moe.parameters()]
    actual = torch.autograd.grad(outputs.square().sum(), inputs, allow_unused=True)
    # The router gets no gradient from one expert with a weight of one.
    wanted = torch.autograd.grad(expected.square().sum(), inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_routing_to_all_experts_equals_the_dense_mixture(dtype):
    moe = make_experts(dtype, num_experts_per_tok=5)
    frames = torch.randn(11, 8, dtype=dtype)
    hidden = ACT2FN["gelu"](torch.einsum("ni,ehi->neh", frames, moe.experts.up_proj))
    outputs = torch.einsum("neh,eoh->neo", hidden, moe.experts.down_proj)
    weights = (frames @ moe.router.weight.T).softmax(-1)
    torch.testing.assert_close(route(moe, frames)[0], torch.einsum("ne,neo->no", weights, outputs))


@pytest.mark.parametrize("group_sizes", [[3, 4, 5], [0, 12, 0], [0, 0, 12], [1, 0, 11], [12, 0, 0]])
def test_grouped_kernel_equals_the_padded_fallback(group_sizes):
    """A matrix with one row less is not suitable for the kernel. All but one of its output columns must be the same."""
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
    moe = make_experts(torch.float32, hidden_size=in_size, num_shared_experts=1)
    frames = torch.randn(40, in_size, requires_grad=True)
    outputs, router_logits = route(moe, frames)
    narrow = gradients(outputs, [frames, *moe.parameters()])
    moe = moe.double()
    wide_frames = frames.detach().double().requires_grad_()
    wide_outputs, wide_router_logits = route(moe, wide_frames)
    torch.manual_seed(1)
    weights = torch.randn_like(outputs).double()
    wide = torch.autograd.grad((wide_outputs * weights).sum(), [wide_frames, *moe.parameters()])
    torch.testing.assert_close(outputs, wide_outputs.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(router_logits, wide_router_logits.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(narrow, tuple(gradient.float() for gradient in wide), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_shared_experts", [0, 1])
@pytest.mark.parametrize(("dtype", "in_size"), [(torch.float32, 8), (torch.float32, 7), (torch.bfloat16, 8)])
def test_an_input_without_frames_is_accepted(dtype, in_size, num_shared_experts):
    moe = make_experts(dtype, hidden_size=in_size, num_shared_experts=num_shared_experts)
    outputs, router_logits = route(moe, torch.zeros(0, in_size, dtype=dtype, requires_grad=True))
    assert outputs.shape == (0, 16)
    assert router_logits.shape == (0, 5)
    loss = outputs.sum() + router_logits.sum()
    assert loss.item() == 0.0
    loss.backward()


def test_frames_do_not_depend_on_each_other():
    moe = make_experts(num_shared_experts=1)
    frames = torch.randn(9, 8, dtype=torch.float64)
    order = torch.randperm(9)
    torch.testing.assert_close(route(moe, frames[order])[0], route(moe, frames)[0][order])
    torch.testing.assert_close(route(moe, frames[4:5])[0], route(moe, frames)[0][4:5])


def test_router_stays_float32_under_bfloat16_autocast():
    moe = make_experts(torch.float32, num_shared_experts=1)
    frames = torch.randn(50, 8)
    expected, expected_logits = route(moe, frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, router_logits = route(moe, frames)
    assert router_logits.dtype == torch.float32
    assert torch.equal(router_logits, expected_logits)
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.float(), expected, rtol=0.05, atol=0.2)


def test_bfloat16_parameters_route_in_float32():
    moe = make_experts(torch.bfloat16)
    frames = torch.randn(50, 8).bfloat16()
    outputs, router_logits = route(moe, frames)
    assert outputs.dtype == torch.bfloat16
    assert router_logits.dtype == torch.float32
    assert torch.equal(router_logits, frames.float() @ moe.router.weight.float().T)


LENGTHS = [7, 0, 1, 4]


def test_the_router_with_a_hidden_layer_equals_its_definition():
    moe = make_experts(router_type="mlp", router_hidden_size=6)
    frames = torch.randn(9, 8, dtype=torch.float64)
    expected = ACT2FN["gelu"](frames @ moe.router.up_proj.T) @ moe.router.weight.T
    torch.testing.assert_close(route(moe, frames)[1], expected)


@pytest.mark.parametrize("num_experts_per_tok", [2, 5])
@pytest.mark.parametrize("num_shared_experts", [0, 1])
def test_utterances_are_routed_by_their_mean_frame(num_experts_per_tok, num_shared_experts):
    moe = make_experts(
        routing_level="utterance", num_experts_per_tok=num_experts_per_tok, num_shared_experts=num_shared_experts
    )
    by_frame = make_experts(num_experts_per_tok=num_experts_per_tok, num_shared_experts=num_shared_experts)
    frames = torch.randn(sum(LENGTHS), 8, dtype=torch.float64)
    outputs, router_logits = route(moe, frames, LENGTHS)
    for recording, actual, logits in zip(
        frames.split(LENGTHS), outputs.split(LENGTHS), router_logits.split(LENGTHS), strict=True
    ):
        if not len(recording):
            continue
        # The mean frame alone must have the same routing as this recording.
        chosen = by_frame.router(recording.mean(0, keepdim=True))
        repeated = chosen.repeat(torch.tensor([len(recording)]), len(recording))
        expected = by_frame.experts(recording, repeated)
        if num_shared_experts:
            expected = expected + by_frame.shared_experts(recording)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(logits, repeated.router_logits)


@pytest.mark.parametrize("num_experts_per_tok", [1, 3, 5])
@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_merged_parameters_equal_their_definition(num_experts_per_tok, norm_topk_prob):
    moe = make_experts(
        routing_level="utterance",
        merge="parameters",
        num_experts_per_tok=num_experts_per_tok,
        norm_topk_prob=norm_topk_prob,
    )
    frames = torch.randn(sum(LENGTHS), 8, dtype=torch.float64, requires_grad=True)
    outputs, _ = route(moe, frames, LENGTHS)
    expected = []
    for recording in frames.split(LENGTHS):
        if not len(recording):
            continue
        probabilities = (moe.router.weight @ recording.mean(0)).softmax(-1)
        chosen = probabilities.argsort(descending=True)[:num_experts_per_tok].tolist()
        total = sum(probabilities[expert] for expert in chosen) if norm_topk_prob else 1.0
        up, down = (
            sum(probabilities[expert] / total * projection[expert] for expert in chosen)
            for projection in (moe.experts.up_proj, moe.experts.down_proj)
        )
        expected.append(ACT2FN["gelu"](recording @ up.T) @ down.T)
    expected = torch.cat(expected)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    inputs = [frames, *moe.parameters()]
    actual = torch.autograd.grad(outputs.square().sum(), inputs)
    wanted = torch.autograd.grad(expected.square().sum(), inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("merge", ["output", "parameters"])
def test_biases_of_experts_equal_their_definition(merge):
    moe = make_experts(routing_level="utterance", merge=merge, expert_bias=True)
    experts = moe.experts
    frames = torch.randn(sum(LENGTHS), 8, dtype=torch.float64)
    outputs, logits = route(moe, frames, LENGTHS)
    expected = []
    for frame, probabilities in zip(frames, logits.softmax(-1), strict=True):
        weights, chosen = probabilities.topk(2)
        weights = weights / weights.sum()
        layers = (experts.up_proj, experts.up_proj_bias, experts.down_proj, experts.down_proj_bias)
        up, up_bias, down, down_bias = (tensor[chosen] for tensor in layers)
        if merge == "parameters":
            up, up_bias, down, down_bias = (
                torch.einsum("k,k...->...", weights, tensor)[None] for tensor in (up, up_bias, down, down_bias)
            )
            weights = torch.ones(1, dtype=torch.float64)
        hidden = ACT2FN["gelu"](torch.einsum("khi,i->kh", up, frame) + up_bias)
        expected.append(weights @ (torch.einsum("koh,kh->ko", down, hidden) + down_bias))
    torch.testing.assert_close(outputs, torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_mean_of_recordings():
    frames = torch.randn(sum(LENGTHS), 3)
    means = mean_of_recordings(frames.bfloat16(), torch.tensor(LENGTHS))
    assert means.dtype == torch.float32
    assert not means[1].any()
    torch.testing.assert_close(means[0], frames[:7].bfloat16().float().mean(0))
    torch.testing.assert_close(means[3], frames[8:].bfloat16().float().mean(0))


def test_jitter_changes_only_the_router_and_only_in_training():
    moe = make_experts(router_jitter_noise=0.3, num_experts_per_tok=5)
    plain = make_experts(num_experts_per_tok=5)
    frames = torch.randn(50, 8, dtype=torch.float64)
    assert torch.equal(route(moe, frames)[0], route(plain, frames)[0])
    assert torch.equal(route(moe, frames)[0], route(moe, frames)[0])
    moe.train()
    noisy, logits = route(moe, frames)
    assert not torch.equal(logits, route(plain, frames)[1])
    # Each feature changes by at most 30 percent, which bounds the change of each logit.
    change = (logits - route(plain, frames)[1]).abs()
    assert (change <= 0.3 * frames.abs() @ plain.router.weight.abs().T).all()
    _, routing = plain(frames, torch.tensor([50]))
    routing.weights = logits.softmax(-1).gather(1, routing.selected_experts)
    torch.testing.assert_close(noisy, plain.experts(frames, routing))


def test_the_bias_changes_the_selection_and_not_the_weights():
    moe = make_experts(router_bias_update_rate=0.1)
    plain = make_experts()
    frames = torch.randn(30, 8, dtype=torch.float64)
    outputs, routing = moe(frames, torch.tensor([30]))
    assert torch.equal(outputs, route(plain, frames)[0])
    moe.balance.e_score_correction_bias[3] = 10.0
    outputs, routing = moe(frames, torch.tensor([30]))
    assert (routing.selected_experts[:, 0] == 3).all()
    probabilities = routing.router_logits.softmax(-1).gather(1, routing.selected_experts)
    torch.testing.assert_close(routing.weights, probabilities / probabilities.sum(-1, keepdim=True))
    assert not torch.equal(outputs, route(plain, frames)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("routing_level", ["frame", "utterance"])
def test_compiled_experts_equal_eager_ones(dtype, routing_level):
    moe = make_experts(dtype, routing_level=routing_level).train()
    frames = torch.randn(11, SIZES["hidden_size"]).to(dtype).requires_grad_()
    lengths = torch.tensor([4, 7])
    expected = moe(frames, lengths)[0]
    compiled = torch.compile(moe, backend="aot_eager")(frames, lengths)[0]
    inputs = [frames, *moe.parameters()]
    tolerance = (
        {"atol": 1e-6, "rtol": 1e-5} if dtype in (torch.float32, torch.float64) else {"atol": 0.1, "rtol": 0.05}
    )
    torch.testing.assert_close(compiled, expected, **tolerance)
    for one, two in zip(gradients(compiled, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, two, **tolerance)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_old_gpus_use_the_padded_path(monkeypatch, capability):
    """A stand-in for CUDA tensors. The code only asks for their device and their memory layout."""

    class OnCuda(torch.Tensor):
        device = torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    hidden_states, weight = torch.zeros(3, 8).as_subclass(OnCuda), torch.zeros(2, 16, 8).as_subclass(OnCuda)
    assert can_use_grouped_mm(hidden_states, weight) == (capability >= (8, 0))


def test_unaligned_weights_use_the_padded_path():
    hidden_states = torch.randn(5, 8)
    weight = torch.randn(2 * 16 * 8 + 1)[1:].view(2, 16, 8)
    assert not can_use_grouped_mm(hidden_states, weight)
    sizes = torch.tensor([2, 3])
    expected = torch.cat([hidden_states[:2] @ weight[0].T, hidden_states[2:] @ weight[1].T])
    torch.testing.assert_close(grouped_matmul(hidden_states, weight, sizes), expected)
