"""Stacks of frames and the options of the linear layers, against plain computations in float64."""

from itertools import pairwise

import pytest
import torch
from tiny_models import pad_recordings

from llm_asr import LlmAsrConfig, LlmAsrProjectorConfig
from llm_asr.modeling.projector_llm_asr import build_projector


LENGTHS = (7, 12, 1, 4)


def make_projector(projector_type="stack", **options):
    options = {"hidden_size": 16, "intermediate_size": 24, "num_experts": 4, "expert_hidden_size": 12, **options}
    config = LlmAsrConfig(
        audio_config={"model_type": "whisper", "d_model": 6},
        text_config={"model_type": "qwen2", "hidden_size": 10},
        projector_config=LlmAsrProjectorConfig(projector_type=projector_type, **options),
    )
    projector = build_projector(config).double()
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return projector


@pytest.fixture
def frames():
    return [torch.randn(length, 6, dtype=torch.float64) for length in LENGTHS]


def stack_by_hand(recording, size, remainder):
    """The stacks of one recording, one after the other."""
    stacks = []
    for start in range(0, len(recording), size):
        members = list(recording[start : start + size])
        if len(members) < size and remainder == "drop":
            continue
        members += [torch.zeros_like(members[0])] * (size - len(members))
        stacks.append(torch.cat(members))
    return torch.stack(stacks) if stacks else recording.new_zeros(0, size * recording.shape[1])


def rms_norm(values, weight):
    return values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("remainder", ["pad", "drop"])
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_stacks_are_frames_beside_each_other(frames, size, remainder):
    projector = make_projector(stack_size=size, stack_remainder=remainder)
    expected = [stack_by_hand(recording, size, remainder) for recording in frames]
    # Padding by NaN shows every leak.
    reduced = projector.reduce_frames(*pad_recordings(frames, padding_value=float("nan")))
    assert reduced.lengths.tolist() == [len(stacks) for stacks in expected]
    assert torch.equal(reduced.frames, torch.cat(expected))
    if size == 1:
        assert torch.equal(reduced.frames, torch.cat(frames))


def test_a_recording_without_a_full_stack_has_no_embedding():
    projector = make_projector(stack_size=4, stack_remainder="drop")
    output = projector(torch.randn(1, 3, 6), torch.ones(1, 3, dtype=torch.bool))
    assert output.lengths.tolist() == [0]
    assert output.embeds.shape == (0, 10)


OPTIONS = {
    "plain": {},
    "no bias": {"mlp_bias": False},
    "gated": {"mlp_gated": True, "hidden_act": "silu"},
    "norms": {"mlp_norms": ["output", "input", "hidden"]},
    # As Ultravox has it.
    "gated with norms": {
        "mlp_gated": True, "hidden_act": "silu", "mlp_bias": False, "mlp_norms": ["input", "hidden"], "stack_size": 8,
    },
    # As Qwen2-Audio has it.
    "one layer": {"intermediate_size": None, "stack_size": 1},
    "one layer with norms": {"intermediate_size": None, "mlp_norms": ["input", "output"], "mlp_bias": False},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_linear_layers_equal_their_equations(frames, options):
    projector = make_projector(**options)
    weights = dict(projector.mlp.named_parameters())
    size = options.get("stack_size", 4)
    values = torch.cat([stack_by_hand(recording, size, "pad") for recording in frames])

    def linear(name, values):
        products = values @ weights.pop(f"{name}.weight").T
        return products if options.get("mlp_bias") is False else products + weights.pop(f"{name}.bias")

    def norm(name, values):
        present = name in options.get("mlp_norms", ())
        return rms_norm(values, weights.pop(f"{name}_norm.weight")) if present else values

    values = linear("0", norm("input", values))
    if "intermediate_size" not in options:
        if "mlp_gated" in options:
            values = values[:, :24] * torch.nn.functional.silu(values[:, 24:])
        else:
            values = torch.nn.functional.gelu(values)
        values = linear("2", norm("hidden", values))
    values = norm("output", values)
    assert not weights, "the projector has a weight that the equation does not have"
    output = projector(*pad_recordings(frames, padding_value=float("nan")))
    torch.testing.assert_close(output.embeds, values)


@pytest.mark.parametrize("projector_type", ["conv", "cif"])
def test_options_of_linear_layers_act_in_other_types(frames, projector_type):
    projector = make_projector(projector_type, intermediate_size=None, mlp_norms=["output"])
    assert sorted(name for name, _ in projector.mlp.named_parameters()) == ["0.bias", "0.weight", "output_norm.weight"]
    output = projector(*pad_recordings(frames), torch.tensor([2, 3, 1, 1]))
    size = output.embeds / projector.mlp.output_norm.weight
    torch.testing.assert_close(size.square().mean(-1), torch.ones(len(size), dtype=torch.float64), rtol=1e-3, atol=0)


def test_experts_see_whole_stacks(frames):
    projector = make_projector("moe_stack", num_experts_per_tok=4)
    stacks = torch.cat([stack_by_hand(recording, 4, "pad") for recording in frames])
    output = projector(*pad_recordings(frames, padding_value=float("nan")))
    experts = projector.moe.experts
    shares = (stacks @ projector.moe.router.weight.T).softmax(-1)
    expected = torch.zeros(len(stacks), 10, dtype=torch.float64)
    for expert in range(4):
        hidden = torch.nn.functional.gelu(stacks @ experts.up_proj[expert].T)
        expected += shares[:, expert, None] * (hidden @ experts.down_proj[expert].T)
    torch.testing.assert_close(output.embeds, expected)


@pytest.mark.parametrize("remainder", ["pad", "drop"])
@pytest.mark.parametrize("cuts", [[], [1, 2, 3], [4, 8], [3, 3, 11]])
def test_a_stream_gives_the_stacks_of_the_whole_recording(frames, remainder, cuts):
    projector = make_projector(stack_remainder=remainder)
    for recording in frames:
        stream = projector.open_stream()
        borders = [0, *(min(cut, len(recording)) for cut in cuts), len(recording)]
        pieces = [
            stream.reduce(recording[start:end], end_index + 2 == len(borders))
            for end_index, (start, end) in enumerate(pairwise(borders))
        ]
        assert torch.equal(torch.cat([piece.frames for piece in pieces]), stack_by_hand(recording, 4, remainder))
        # Every stack comes with its last frame.
        lengths = torch.cat([piece.lengths for piece in pieces]).cumsum(0)
        assert lengths[:-1].tolist() == [border // 4 for border in borders[1:-1]]
