"""The Q-Former against a plain computation in float64, and against Granite Speech's projector."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import compose, pad_recordings
from transformers import GraniteSpeechConfig

from llm_asr import LlmAsrConfig, LlmAsrProjectorConfig
from llm_asr.modeling.projector_llm_asr import build_projector


LENGTHS = (7, 12, 1, 4)
WINDOW, QUERIES, HEADS = 5, 2, 4


def make_projector(projector_type="qformer", **options):
    config = LlmAsrConfig(
        audio_config={"model_type": "whisper", "d_model": 6},
        text_config={"model_type": "qwen2", "hidden_size": 10},
        projector_config=LlmAsrProjectorConfig(
            projector_type=projector_type,
            **{
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_experts": 4,
                "expert_hidden_size": 12,
                "qformer_window_size": WINDOW,
                "qformer_num_queries": QUERIES,
                "qformer_num_attention_heads": HEADS,
                "qformer_intermediate_size": 20,
                **options,
            },
        ),
    )
    projector = build_projector(config).double()
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return projector


@pytest.fixture
def frames():
    return [torch.randn(length, 6, dtype=torch.float64) for length in LENGTHS]


def attend(attention, queries, keys):
    """BERT's attention with residual and normalisation, one head after the other."""
    module, outputs = attention.attention, []
    for head in range(HEADS):
        rows = slice(head * 4, head * 4 + 4)
        query, key, value = (
            F.linear(states, getattr(module, name).weight[rows], getattr(module, name).bias[rows])
            for name, states in (("query", queries), ("key", keys), ("value", keys))
        )
        outputs.append((query @ key.T / 2).softmax(-1) @ value)
    output = attention.output
    return normalise(output.LayerNorm, output.dense(torch.cat(outputs, -1)) + queries)


def normalise(norm, values):
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def embed_window(projector, window, frequency):
    """The embeddings of one window, by the equations of BERT's layers."""
    states = normalise(projector.qformer.layernorm, projector.query[0])
    for index, layer in enumerate(projector.qformer.encoder.layer):
        states = attend(layer.attention, states, states)
        if index % frequency == 0:
            states = attend(layer.crossattention, states, window)
        hidden = F.gelu(layer.intermediate_query.dense(states))
        states = normalise(layer.output_query.LayerNorm, layer.output_query.dense(hidden) + states)
    return states


@pytest.mark.parametrize("remainder", ["mask", "zeros"])
@pytest.mark.parametrize(("num_layers", "frequency"), [(1, 1), (3, 2)])
def test_windows_equal_their_equations(frames, remainder, num_layers, frequency):
    options = {"qformer_num_hidden_layers": num_layers, "qformer_cross_attention_frequency": frequency}
    projector = make_projector(qformer_remainder=remainder, **options)
    expected = []
    for recording in frames:
        for window in recording.split(WINDOW):
            if remainder == "zeros":
                window = F.pad(window, (0, 0, 0, WINDOW - len(window)))
            expected.append(embed_window(projector, window, frequency))
    # Padding by NaN shows every leak.
    reduced = projector.reduce_frames(*pad_recordings(frames, padding_value=float("nan")), None)
    assert reduced.lengths.tolist() == [2 * QUERIES, 3 * QUERIES, QUERIES, QUERIES]
    torch.testing.assert_close(reduced.frames, torch.cat(expected))


def test_a_window_ends_the_influence_of_its_frames(frames):
    projector = make_projector()
    mask = torch.ones(1, 12, dtype=torch.bool)
    before = projector(frames[1][None], mask).embeds
    changed = frames[1].clone()
    changed[5] += 1
    difference = (projector(changed[None], mask).embeds - before).abs().amax(-1)
    assert (difference > 1e-6).tolist() == [False, False, True, True, False, False]


def test_experts_see_the_queries(frames):
    projector = make_projector("moe_qformer", num_experts_per_tok=4)
    queries = projector.reduce_frames(*pad_recordings(frames), None).frames
    output = projector(*pad_recordings(frames, padding_value=float("nan")))
    experts = projector.moe.experts
    shares = (queries @ projector.moe.router.weight.T).softmax(-1)
    expected = sum(
        shares[:, index, None] * (F.gelu(queries @ experts.up_proj[index].T) @ experts.down_proj[index].T)
        for index in range(4)
    )
    torch.testing.assert_close(output.embeds, expected)


def test_granite_speech_projectors_load_by_names(frames):
    """All weights of Granite Speech's projector have their place, and give the same embeddings."""
    from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechEncoderProjector

    config = GraniteSpeechConfig(
        text_config={"model_type": "granite", "hidden_size": 10},
        encoder_config={"model_type": "granite_speech_encoder", "hidden_dim": 6},
        projector_config={
            "model_type": "blip_2_qformer", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": HEADS,
            "intermediate_size": 20, "cross_attention_frequency": 1, "encoder_hidden_size": 6,
        },
        window_size=6,
        downsample_rate=3,
    )  # fmt: skip
    granite = GraniteSpeechEncoderProjector(config).double().eval()
    for parameter in granite.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    projector = make_projector(intermediate_size=None, qformer_window_size=6, qformer_remainder="zeros").eval()
    weights = {name.replace("linear.", "mlp.0."): tensor for name, tensor in granite.state_dict().items()}
    projector.load_state_dict(weights)
    for recording in frames:
        output = projector(recording[None], torch.ones(1, len(recording), dtype=torch.bool))
        torch.testing.assert_close(output.embeds, granite(recording[None])[0])


def test_new_weights_have_the_spread_that_the_configuration_names(parts):
    model, _ = compose(parts, "qformer", hidden_size=64, initializer_range=0.3)
    projector = model.model.projector
    weight = projector.qformer.encoder.layer[1].crossattention.attention.key.weight
    torch.testing.assert_close(weight.std(), torch.tensor(0.3), rtol=0.1, atol=0)
    torch.testing.assert_close(projector.query.std(), torch.tensor(1.0), rtol=0.2, atol=0)
    model, _ = compose(parts, "qformer", hidden_size=64, initializer_range=None)
    weight = model.model.projector.qformer.encoder.layer[1].crossattention.attention.key.weight
    torch.testing.assert_close(weight.std(), torch.tensor(0.02), rtol=0.1, atol=0)
