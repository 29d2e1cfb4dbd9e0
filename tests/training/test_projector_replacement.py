"""A model with another projector: what it keeps, what it copies, and that copied experts compute the same at first."""

import pytest
import torch
from tiny_models import compose

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.training.lora import add_lora
from llm_asr.training.projector_replacement import replace_projector


DENSE_TO_EXPERTS = [
    ("conv", "moe"),
    ("cif", "moe_cif"),
    ("stack", "moe_stack"),
    ("qformer", "moe_qformer"),
    ("ctc", "moe_ctc"),
]
EXPERTS = {
    "top-k": {"num_experts_per_tok": 2},
    "one": {"num_experts_per_tok": 1},
    "dense without rescaling": {"num_experts_per_tok": 4, "norm_topk_prob": False},
    "shared": {"num_shared_experts": 2},
    "mlp router": {"router_type": "mlp"},
    "utterance": {"routing_level": "utterance"},
    "merged": {"routing_level": "utterance", "merge": "parameters"},
}


def compose_with_biases(parts, projector_type, **kwargs):
    """A model whose biases are not zero, as those of a trained one."""
    model, processor = compose(parts, projector_type, **kwargs)
    for name, parameter in model.model.projector.named_parameters():
        if name.endswith("bias") and not name.startswith(("cif", "ctc_head.blank")):
            torch.nn.init.normal_(parameter, std=0.3)
    return model, processor


@torch.no_grad()
def run(model, processor, recordings):
    features = processor.apply_transcription_request(recordings, return_tensors="pt")
    return model(**features), model.generate(**features, max_new_tokens=6)


@pytest.mark.parametrize(("old", "new"), DENSE_TO_EXPERTS)
@pytest.mark.parametrize("options", EXPERTS.values(), ids=EXPERTS)
def test_upcycled_experts_compute_the_same_until_they_are_trained(parts, recordings, old, new, options):
    model, processor = compose_with_biases(parts, old)
    before, tokens = run(model, processor, recordings)
    copied = replace_projector(model, new, **options)
    after, new_tokens = run(model, processor, recordings)

    assert "model.projector.moe.experts.down_proj_bias" in copied
    assert not any("router" in name for name in copied)
    torch.testing.assert_close(after.audio_embeds, before.audio_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-5)
    assert new_tokens.tolist() == tokens.tolist()
    assert after.router_logits.std() > 0
    # Training moves the experts apart.
    batch = processor.apply_transcription_request(recordings, return_tensors="pt")
    model(**batch).audio_embeds.square().sum().backward()
    experts = model.model.projector.moe.experts
    assert experts.up_proj.grad.abs().sum() > 0
    assert experts.up_proj.grad.std(0).sum() > 0


def test_without_copied_biases_outputs_differ(parts, recordings):
    model, processor = compose_with_biases(parts, "conv")
    before, _ = run(model, processor, recordings)
    copied = replace_projector(model, "moe", expert_bias=False)
    after, _ = run(model, processor, recordings)
    assert not any("experts" in name for name in copied)
    assert (after.audio_embeds - before.audio_embeds).abs().max() > 1e-2


def test_layers_without_biases_become_experts_without_biases(parts, recordings):
    model, processor = compose(parts, "stack", mlp_bias=False)
    before, _ = run(model, processor, recordings)
    copied = replace_projector(model, "moe_stack")
    after, _ = run(model, processor, recordings)
    assert copied == ["model.projector.moe.experts.up_proj", "model.projector.moe.experts.down_proj"]
    assert (model.config.projector_config.expert_bias, model.config.projector_config.mlp_bias) == (False, True)
    torch.testing.assert_close(after.audio_embeds, before.audio_embeds, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "options"),
    [
        ("stack", "moe_stack", {"mlp_gated": True, "mlp_bias": False}),
        ("stack", "moe_stack", {"mlp_norms": ["hidden"]}),
        ("qformer", "moe_qformer", {"intermediate_size": None}),
        # A stack of four frames is larger than a frame behind convolutions.
        ("stack", "moe", {}),
        ("conv", "moe_stack", {}),
    ],
)
def test_other_layers_than_those_of_experts_are_not_copied(parts, recordings, old, new, options):
    model, processor = compose(parts, old, **options)
    copied = replace_projector(model, new)
    assert not any("experts" in name for name in copied)
    assert model.config.projector_config.projector_type == new
    run(model, processor, recordings)
    model, _ = compose(parts, old, **options)
    with pytest.raises(ValueError, match="`expert_noise` must not be negative, and it is for experts that are copies"):
        replace_projector(model, new, expert_noise=0.1)


def test_what_reduces_frames_is_kept(parts):
    model, _ = compose_with_biases(parts, "qformer")
    old = {name: tensor.clone() for name, tensor in model.model.projector.state_dict().items()}
    copied = replace_projector(model, "moe_qformer")
    new = model.model.projector.state_dict()
    for name in old:
        if not name.startswith("mlp."):
            assert f"model.projector.{name}" in copied
            assert torch.equal(new[name], old[name]), name
    # The Q-Former of another window starts from the same weights, and one of another width from new ones.
    assert replace_projector(model, "qformer", qformer_window_size=8)
    assert torch.equal(model.model.projector.query, old["query"])
    replace_projector(model, "qformer", hidden_size=64, initializer_range=0.3)
    weight = model.model.projector.qformer.encoder.layer[0].crossattention.attention.query.weight
    torch.testing.assert_close(weight.std(), torch.tensor(0.3), rtol=0.1, atol=0)
    # Convolutions and a CTC head have nothing of a Q-Former.
    assert {name.split(".")[2] for name in replace_projector(model, "ctc")} == {"mlp"}
    assert "model.projector.ctc_head.proj.weight" in replace_projector(model, "moe_ctc")
    assert model.config.projector_config.conv_strides == [2, 2]


def test_tensors_of_the_same_name_and_shape_are_copied(parts):
    model, _ = compose_with_biases(parts, "conv")
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied = replace_projector(model, "moe_cif", num_experts=3, num_experts_per_tok=2)
    new = model.state_dict()

    config = model.config.projector_config
    assert (config.conv_strides, config.hidden_size, config.expert_hidden_size) == ([2], 32, 48)
    assert [name for name in copied if "downsampler" in name] == [
        "model.projector.downsampler.convs.0.weight",
        "model.projector.downsampler.convs.0.bias",
    ]
    for name, tensor in new.items():
        if not name.startswith("model.projector.") or (name in copied and name in old):
            assert torch.equal(tensor, old[name]), name
    for expert in new["model.projector.moe.experts.up_proj"]:
        assert torch.equal(expert, old["model.projector.mlp.0.weight"])


def test_a_new_projector_is_random_without_warm_start(parts):
    model, _ = compose(parts, "conv")
    old = model.model.projector.downsampler.convs[0].weight.clone()
    assert replace_projector(model, "moe", warm_start=False) == []
    assert not torch.equal(model.model.projector.downsampler.convs[0].weight, old)
    config = model.config.projector_config
    assert (config.expert_hidden_size, config.expert_bias) == (16, False)


def test_noise_makes_experts_different(parts):
    model, _ = compose(parts, "conv")
    source = model.model.projector.mlp[0].weight.clone()
    replace_projector(model, "moe", expert_noise=0.1)
    experts = model.model.projector.moe.experts
    for expert in experts.up_proj:
        assert 0.05 < ((expert - source).std() / source.std()).item() < 0.2
    assert not torch.equal(experts.up_proj[0], experts.up_proj[1])


def test_the_draft_head_stays_with_cif_and_goes_without(parts):
    model, _ = compose(parts, "cif", draft_head=True)
    copied = replace_projector(model, "moe_cif")
    assert "draft_head.down_proj.weight" in copied
    assert model.config.projector_config.draft_head
    replace_projector(model, "conv")
    assert model.draft_head is None
    assert model.config.projector_config.conv_strides == [2, 2]


@pytest.mark.parametrize("projector_type", ["moe", "cif", "moe_cif", "stack", "moe_qformer", "ctc"])
def test_the_model_trains_saves_and_loads(parts, recordings, tmp_path, projector_type):
    model, processor = compose(parts, "conv")
    replace_projector(model, projector_type)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(name.startswith("model.projector.") for name in trainable)
    features, tokens = run(model, processor, recordings)
    model.save_pretrained(tmp_path)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path)
    again, new_tokens = run(loaded, processor, recordings)
    torch.testing.assert_close(again.logits, features.logits)
    assert new_tokens.tolist() == tokens.tolist()


def test_the_new_projector_is_float32(parts):
    model, _ = compose(parts, "conv")
    model.model.projector.bfloat16()
    replace_projector(model, "moe_qformer")
    assert {parameter.dtype for parameter in model.model.projector.parameters()} == {torch.float32}


def test_impossible_requests_are_refused_and_change_nothing(parts):
    model, _ = compose(parts, "conv")
    projector = model.model.projector
    for kwargs, message in (
        ({"projector_type": "transformer"}, "projector_type"),
        ({"projector_type": "moe", "num_expert": 3}, "num_expert"),
        ({"projector_type": "cif", "expert_noise": 0.1}, "expert_noise"),
        ({"projector_type": "moe", "expert_noise": -0.1}, "expert_noise"),
        ({"projector_type": "moe", "expert_noise": float("nan")}, "expert_noise"),
    ):
        with pytest.raises(ValueError, match=message):
            replace_projector(model, **kwargs)
    with pytest.raises(TypeError, match="merge_and_unload"):
        replace_projector(add_lora(model, rank=2), "moe")
    model, _ = compose(parts, "conv")
    assert model.config.projector_config.projector_type == "conv"
    assert projector.mlp is not None
