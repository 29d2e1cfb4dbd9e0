import pytest
import torch
from tiny_models import compose, pad_recordings

from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES
from llm_asr.modeling.ctc import collapse_labels
from llm_asr.modeling.expert_balance import count_expert_load, load_balancing_loss, router_z_loss
from llm_asr.modeling.projector_llm_asr import PROJECTORS, build_projector


LENGTHS = (7, 24, 1, 15)
TARGET_LENGTHS = torch.tensor([3, 9, 1, 6])

with_target_lengths = pytest.mark.parametrize(
    "target_lengths", [None, TARGET_LENGTHS], ids=["free", "with target lengths"]
)


UTTERANCE = {"routing_level": "utterance"}
MERGED = {**UTTERANCE, "merge": "parameters", "num_experts_per_tok": 4}
MLP_ROUTER = {"router_type": "mlp", "router_hidden_size": 16, "router_bias_update_rate": 0.01}
VARIANTS = [
    *((projector_type, {"num_shared_experts": 1}) for projector_type in PROJECTOR_TYPES),
    ("moe", UTTERANCE),
    ("moe_cif", MERGED),
    ("moe_cif", MLP_ROUTER),
]


@pytest.fixture(params=VARIANTS, ids=[*PROJECTOR_TYPES, "moe utterance", "moe_cif merged", "moe_cif mlp router"])
def projector(request, parts):
    """A projector with the model's initial weights. All projectors get the same encoder frames."""
    projector_type, options = request.param
    model, _ = compose(parts, projector_type, **options)
    return with_token_embeddings(model)


def with_token_embeddings(model):
    """The model's projector, which gets the token embeddings as the model gives them."""
    embeddings = model.get_input_embeddings().weight.detach()
    model.model.projector.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "token_embeddings": embeddings}), with_kwargs=True
    )
    return model.model.projector


@pytest.fixture
def frames():
    return [torch.randn(length, 32) for length in LENGTHS]


def packed_parts(output, recording):
    """The projector's output for one recording, without padding."""
    lengths = output.lengths.tolist()
    found = {}
    for name in ("embeds", "router_logits", "selected_experts", "fire_times"):
        if getattr(output, name) is not None:
            found[name] = getattr(output, name).split(lengths)[recording]
    if output.alphas is not None:
        # Only weights in padding are zero, because a sigmoid is positive.
        found["alphas"] = output.alphas[recording][output.alphas[recording] > 0]
        found["quantities"] = output.quantities[recording]
    if output.ctc_labels is not None:
        labels = output.ctc_labels[recording]
        found["ctc_labels"] = labels[labels != -100]
    return found


def losses(output):
    """A loss that depends on all outputs, so that gradients flow through each of them."""
    total = output.embeds.square().sum()
    if output.router_logits is not None:
        load = count_expert_load(output.router_logits, output.selected_experts)
        total = total + load_balancing_loss(output.router_logits, load) + router_z_loss(output.router_logits)
    if output.quantities is not None:
        total = total + (output.quantities - TARGET_LENGTHS).abs().sum()
    if output.ctc_scores is not None:
        total = total + output.ctc_scores.queries.square().sum() + output.ctc_scores.blank.square().sum()
    return total


def run_with_gradients(projector, hidden_states, mask, target_lengths):
    projector.zero_grad()
    hidden_states = hidden_states.clone().requires_grad_()
    output = projector(hidden_states, mask, target_lengths)
    loss = losses(output)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in projector.named_parameters()}
    return output, loss, hidden_states.grad, gradients


def test_registry_has_the_types_of_the_configuration(parts):
    assert tuple(PROJECTORS) == PROJECTOR_TYPES
    for projector_type in PROJECTOR_TYPES:
        model, _ = compose(parts, projector_type)
        assert type(build_projector(model.config)) is PROJECTORS[projector_type]


@with_target_lengths
@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
def test_padded_frames_influence_nothing(projector, frames, garbage, target_lengths):
    hidden_states, mask = pad_recordings(frames)
    clean = run_with_gradients(projector, hidden_states, mask, target_lengths)
    # Pad by two more frames than the longest recording has.
    soiled, mask = pad_recordings(frames, padding_value=garbage, num_frames=max(LENGTHS) + 2)
    dirty = run_with_gradients(projector, soiled, mask, target_lengths)
    assert dirty[0].lengths.tolist() == clean[0].lengths.tolist()
    for recording in range(len(LENGTHS)):
        torch.testing.assert_close(packed_parts(dirty[0], recording), packed_parts(clean[0], recording))
    torch.testing.assert_close(dirty[1], clean[1])
    torch.testing.assert_close(dirty[2][:, : max(LENGTHS)], clean[2])
    assert not dirty[2][~mask].any()
    torch.testing.assert_close(dirty[3], clean[3], rtol=1e-4, atol=1e-4)


@with_target_lengths
def test_recordings_do_not_depend_on_their_batch(projector, frames, target_lengths):
    order = [2, 0, 3, 1]
    hidden_states, mask = pad_recordings(frames)
    together = projector(hidden_states, mask, target_lengths)
    reordered = projector(hidden_states[order], mask[order], None if target_lengths is None else target_lengths[order])
    for recording, frame in enumerate(frames):
        target = None if target_lengths is None else target_lengths[recording : recording + 1]
        alone = projector(frame[None], torch.ones(1, len(frame), dtype=torch.bool), target)
        assert alone.lengths.item() == together.lengths[recording]
        expected = packed_parts(alone, 0)
        torch.testing.assert_close(packed_parts(together, recording), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(packed_parts(reordered, order.index(recording)), expected, rtol=1e-4, atol=1e-4)


def test_lengths(projector, frames):
    """
    Fixed rates give a quarter of the frames, or two embeddings of six, rounded up. CIF gives the target length or the predicted
    length, and CTC the number of runs of labels.
    """
    hidden_states, mask = pad_recordings(frames)
    free = projector(hidden_states, mask)
    told = projector(hidden_states, mask, TARGET_LENGTHS)
    if free.ctc_labels is not None:
        expected = [len(tokens) for tokens in collapse_labels(free.ctc_labels, blank=projector.vocab_size)]
        assert free.lengths.tolist() == told.lengths.tolist() == expected
        assert (free.ctc_labels != -100).sum(-1).tolist() == [2, 6, 1, 4]
    elif free.alphas is None:
        expected = [4, 8, 2, 6] if hasattr(projector, "qformer") else [2, 6, 1, 4]
        assert free.lengths.tolist() == told.lengths.tolist() == expected
    else:
        assert told.lengths.tolist() == TARGET_LENGTHS.tolist()
        whole = free.quantities.floor()
        assert free.lengths.tolist() == (whole + (free.quantities - whole > 0.5)).tolist()
    for output in (free, told):
        assert output.embeds.shape == (int(output.lengths.sum()), 40)


def test_fire_times_are_seconds_within_the_recording(projector, frames):
    hidden_states, mask = pad_recordings(frames)
    output = projector(hidden_states, mask, TARGET_LENGTHS)
    if output.fire_times is None:
        assert output.alphas is None
        return
    # There are 50 encoder frames per second, and two encoder frames per projector frame.
    for times, length in zip(output.fire_times.split(TARGET_LENGTHS.tolist()), LENGTHS, strict=True):
        assert (times.diff() >= 0).all()
        assert times[0] > 0
        assert times[-1].item() == pytest.approx(((length + 1) // 2) * 0.04, abs=1e-4)


@with_target_lengths
def test_gradients_reach_every_parameter(projector, frames, target_lengths):
    hidden_states, mask = pad_recordings(frames)
    *_, gradients = run_with_gradients(projector, hidden_states, mask, target_lengths)
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


def test_gradients_of_embeddings_reach_every_parameter(projector, frames):
    """There is no auxiliary loss, as with a weight of zero."""
    hidden_states, mask = pad_recordings(frames)
    projector(hidden_states, mask, TARGET_LENGTHS).embeds.square().sum().backward()
    for name, parameter in projector.named_parameters():
        if name.startswith("ctc_head."):
            # The choice of labels has no gradient.
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(projector, frames, autocast):
    hidden_states, mask = pad_recordings(frames)
    expected = projector(hidden_states, mask, TARGET_LENGTHS)
    if autocast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = projector(hidden_states, mask, TARGET_LENGTHS)
    else:
        output = projector.bfloat16()(hidden_states.bfloat16(), mask, TARGET_LENGTHS)
    assert output.embeds.dtype == torch.bfloat16
    # Two labels with almost the same score may change places.
    assert output.ctc_labels is not None or output.lengths.tolist() == expected.lengths.tolist()
    assert output.embeds.isfinite().all()
    for name in ("alphas", "quantities", "router_logits"):
        value = getattr(output, name)
        assert value is None or value.dtype == torch.float32, name
    if output.quantities is not None:
        torch.testing.assert_close(output.quantities, expected.quantities, rtol=0.05, atol=0.05)
    losses(output).backward()
    assert all(parameter.grad.isfinite().all() for parameter in projector.parameters())


def test_kernels_wider_than_the_recording(parts):
    model, _ = compose(parts, "moe_cif", conv_kernel_size=7, conv_strides=[3, 2])
    frames = [torch.randn(length, 32) for length in (2, 13)]
    together = model.model.projector(*pad_recordings(frames), torch.tensor([1, 4]))
    alone = model.model.projector(*pad_recordings(frames[:1]), torch.tensor([1]))
    torch.testing.assert_close(packed_parts(together, 0), packed_parts(alone, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("projector_type", ["cif", "moe_cif"])
@pytest.mark.parametrize(
    "options",
    [{}, {"cif_threshold": 0.5}, {"conv_strides": [1]}, {"cif_smooth_factor": 1.5, "cif_noise_threshold": 0.05}],
    ids=["default", "threshold", "stride", "smooth and noise"],
)
def test_a_new_projector_fires_the_expected_tokens_per_second(parts, projector_type, options):
    model, _ = compose(parts, projector_type, expected_tokens_per_second=5.0, **options)
    projector = model.model.projector
    # Without weights only the bias remains, which determines the expected rate.
    torch.nn.init.zeros_(projector.cif.alpha_proj.weight)
    output = projector(torch.randn(1, 100, 32), torch.ones(1, 100, dtype=torch.bool))
    # 100 encoder frames last two seconds.
    torch.testing.assert_close(output.quantities, torch.tensor([10.0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("hidden_size", [16, 256])
@pytest.mark.parametrize("projector_type", PROJECTOR_TYPES)
def test_initial_embeddings_have_equal_loudness_at_any_width(parts, projector_type, hidden_size):
    sizes = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "expert_hidden_size": hidden_size}
    model, _ = compose(
        parts, projector_type, **sizes, num_shared_experts=1, initializer_range=None, expected_tokens_per_second=5.0
    )
    frames, mask = torch.randn(20, 100, 32), torch.ones(20, 100, dtype=torch.bool)
    with torch.no_grad():
        output = with_token_embeddings(model)(frames, mask)
    assert 0.1 < output.embeds.square().mean().sqrt() < 1
    if output.quantities is not None:
        torch.testing.assert_close(output.quantities.mean(), torch.tensor(10.0), rtol=0.1, atol=0)


@pytest.mark.parametrize("projector_type", PROJECTOR_TYPES)
def test_a_given_range_applies_to_all_weight_matrices(parts, projector_type):
    """The range of the language model, 0.2 here, is not used."""
    options = {"draft_head": True} if "cif" in projector_type else {}
    model, _ = compose(parts, projector_type, num_shared_experts=1, initializer_range=0.05, **options)
    weights = [*model.model.projector.named_parameters()]
    weights += [] if model.draft_head is None else model.draft_head.named_parameters()
    for name, weight in weights:
        if weight.dim() > 1 and weight.numel() > 500:
            torch.testing.assert_close(weight.std(), torch.tensor(0.05), rtol=0.15, atol=0, msg=name)
    assert model.lm_head.weight.std() > 0.15
