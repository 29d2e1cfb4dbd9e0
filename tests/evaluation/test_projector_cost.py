import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llm_asr import LlmAsrConfig, LlmAsrProjectorConfig
from llm_asr.evaluation.projector_cost import match_parameters, projector_cost
from llm_asr.modeling.projector_llm_asr import build_projector


def make_config(projector_type, **options):
    options = {"hidden_size": 16, "intermediate_size": 24, "num_experts": 4, "expert_hidden_size": 12, **options}
    return LlmAsrConfig(
        audio_config={"model_type": "whisper", "d_model": 32},
        text_config={"model_type": "qwen2", "hidden_size": 40},
        projector_config=LlmAsrProjectorConfig(projector_type=projector_type, **options),
    )


@pytest.mark.parametrize(
    ("projector_type", "options"),
    [
        ("conv", {}),
        ("conv", {"conv_strides": [5]}),
        ("cif", {}),
        ("stack", {"stack_size": 5}),
        ("stack", {"intermediate_size": None}),
        ("stack", {"mlp_gated": True, "mlp_norms": ["input", "hidden", "output"]}),
        ("moe_stack", {"num_experts_per_tok": 4}),
        ("qformer", {"qformer_num_attention_heads": 4, "qformer_window_size": 20}),
        (
            "qformer",
            {
                "qformer_num_attention_heads": 2,
                "qformer_num_hidden_layers": 5,
                "qformer_cross_attention_frequency": 2,
                "qformer_window_size": 10,
                "qformer_num_queries": 4,
                "intermediate_size": None,
            },
        ),
        ("ctc", {}),
        ("moe_ctc", {"num_experts_per_tok": 4}),
        # With one expert the fallback has no padding, so it does not compute additional products.
        ("moe", {"num_experts": 1, "num_experts_per_tok": 1, "num_shared_experts": 2}),
        ("moe", {"num_experts_per_tok": 4, "router_type": "mlp", "router_hidden_size": 8}),
        ("moe_cif", {"num_experts_per_tok": 4}),
    ],
)
def test_operations_equal_the_count_of_torch(projector_type, options):
    """Uses ten seconds of audio in float64, because PyTorch counts all of its products in float64."""
    config = make_config(projector_type, **options)
    projector = build_projector(config).double().requires_grad_(False)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if hasattr(projector, "qformer"):
        # PyTorch does not count fused attention.
        projector.qformer.set_attn_implementation("eager")
    lengths = torch.tensor([35]) if config.projector_config.uses_cif else None
    frames, mask = torch.randn(1, 500, 32, dtype=torch.float64), torch.ones(1, 500, dtype=torch.bool)
    embeddings = torch.randn(151936, 40, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = projector(frames, mask, lengths, embeddings)
    expected = counter.get_total_flops()
    if config.projector_config.uses_cif:
        # PyTorch does not count the integration as a product.
        expected += 2 * 250 * 16
    if options.get("num_experts_per_tok") == 4:
        # With all experts, the weighting of outputs is a product, which PyTorch counts.
        expected -= 2 * int(output.lengths) * 4 * 40
    rate = int(output.lengths) / 10
    assert 10 * projector_cost(config, tokens_per_second=rate).flops_per_second == pytest.approx(expected)


def test_parameters_of_experts():
    projector = build_projector(make_config("moe", num_shared_experts=1))
    cost = projector_cost(make_config("moe", num_shared_experts=1))
    one_expert = 16 * 12 + 12 * 40
    assert cost.total_parameters == sum(parameter.numel() for parameter in projector.parameters())
    assert cost.active_parameters == cost.total_parameters - 2 * one_expert
    merged = projector_cost(make_config("moe", routing_level="utterance", merge="parameters"))
    assert merged.active_parameters == merged.total_parameters


def test_cif_fires_the_expected_number_by_default():
    config = make_config("cif", expected_tokens_per_second=5.0)
    assert projector_cost(config) == projector_cost(config, tokens_per_second=5.0)
    assert projector_cost(config).flops_per_second > projector_cost(config, tokens_per_second=4.0).flops_per_second


@pytest.mark.parametrize("parameters", ["total", "active"])
@pytest.mark.parametrize(
    ("projector_type", "reference_type"),
    [
        ("conv", "moe"),
        ("conv", "moe_cif"),
        ("cif", "moe_cif"),
        ("stack", "moe_stack"),
        ("qformer", "moe_qformer"),
        ("ctc", "moe_ctc"),
        ("conv", "qformer"),
    ],
)
def test_matched_parameters(projector_type, reference_type, parameters):
    reference = make_config(reference_type, num_shared_experts=1)
    matched = match_parameters(projector_type, reference, parameters)
    assert matched.projector_type == projector_type
    config = LlmAsrConfig(
        audio_config=reference.audio_config, text_config=reference.text_config, projector_config=matched
    )
    difference = projector_cost(config).total_parameters - getattr(
        projector_cost(reference), f"{parameters}_parameters"
    )
    # Increasing the width by one adds a row, a column and a bias.
    assert abs(difference) <= (config.projector_config.reduced_size(32) + 40 + 1) / 2


def test_gated_layers_match_too():
    reference = make_config("moe_stack", stack_size=2, num_experts=8)
    matched = match_parameters("stack", reference, mlp_gated=True, mlp_norms=["hidden"])
    assert (matched.stack_size, matched.mlp_gated) == (2, True)
    config = LlmAsrConfig(
        audio_config=reference.audio_config, text_config=reference.text_config, projector_config=matched
    )
    difference = projector_cost(config).total_parameters - projector_cost(reference).total_parameters
    # Increasing the width by one adds two rows with biases, a scale and a column.
    assert abs(difference) <= (2 * (64 + 1) + 1 + 40) / 2


def test_impossible_matches_are_refused():
    with pytest.raises(ValueError, match="`parameters` must be 'total' or 'active', got 'all'"):
        match_parameters("conv", make_config("moe"), "all")
    with pytest.raises(ValueError, match="must be a type without experts, such as 'conv', got 'moe'"):
        match_parameters("moe", make_config("moe"))
    with pytest.raises(ValueError, match="make `hidden_size` smaller"):
        match_parameters("conv", make_config("moe"), hidden_size=512)
