"""Attention in chunks: what frames see, in batches, in training, and as a part of the checkpoint."""

import pytest
import torch
from model_batches import KERNEL_NOISE, training_batch
from tiny_models import compose, pad_recordings

from llm_asr import LlmAsrConfig, LlmAsrForConditionalGeneration
from llm_asr.modeling.chunked_attention import AttentionChunks, lay_out_chunks
from llm_asr.modeling.streaming_convolution import StreamingConvolution


CHUNKS = {
    "encoder_attention": "chunked",
    "encoder_chunk_s": 0.2,
    "encoder_left_context_s": 0.1,
    "encoder_lookahead_s": 0.06,
}
NUM_MEL = 100


def encode(model, features, lengths=None):
    mask = None if lengths is None else torch.arange(features.shape[2]) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        return model.model.get_audio_hidden_states(features, mask)[0]


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_frames_see_their_chunk_the_left_context_and_the_look_ahead(parts, attn_implementation):
    model, _ = compose(parts, "conv", **CHUNKS, audio_kwargs={"attn_implementation": attn_implementation})
    features = torch.randn(1, 16, NUM_MEL)
    original = encode(model, features)
    assert original.shape[1] == 50
    frames = torch.arange(50)
    reached = torch.zeros(50, 50, dtype=torch.bool)
    for frame in range(50):
        changed = features.clone()
        changed[:, :, 2 * frame] += 1.0
        reached[:, frame] = (encode(model, changed) - original).abs().amax((0, 2)) > 1e-6
    # The convolutions bring mel frame 2 t to the frames t - 1, t and t + 1.
    start = frames // 10 * 10
    assert torch.equal(reached.long().mul(frames).amax(1), (start + 10 + 3).clamp(max=49))
    # The left context grows with each of the two layers: five frames before a chunk, and five before the chunk of those.
    assert torch.equal(reached.long().argmax(1), (start - 15 - 1).clamp(min=0))


def test_the_layout_of_a_look_ahead():
    layout = lay_out_chunks(7, AttentionChunks(size=3, left=1, lookahead=2), torch.device("cpu"))
    # Copies of frames 3 and 4 for the first chunk, and of frame 6 for the second. The third has none.
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 6]
    visible = [row.nonzero().flatten().tolist() for row in layout.is_visible]
    first, second, third = [0, 1, 2, 7, 8], [2, 3, 4, 5, 9], [5, 6]
    assert visible == [first, first, first, second, second, second, third, first, first, second]
    # Every row has something to attend to, padding too.
    scores = layout.make_mask(torch.arange(7)[None] < 2, torch.float16)
    assert scores.shape == (1, 1, 10, 10)
    assert (scores == 0).any(-1).all()


def test_one_chunk_as_long_as_the_recording_is_full_attention(parts):
    full, _ = compose(parts, "conv")
    chunked, _ = compose(parts, "conv", encoder_attention="chunked", encoder_chunk_s=1.0)
    features = torch.randn(2, 16, NUM_MEL)
    torch.testing.assert_close(encode(chunked, features), encode(full, features), **KERNEL_NOISE)
    chunked.config.set_encoder_attention("chunked", 0.5)
    assert not torch.allclose(encode(chunked, features), encode(full, features), atol=1e-2)


@pytest.mark.parametrize("lookahead", [0.0, 0.06])
def test_padding_does_not_matter(parts, lookahead):
    model, _ = compose(parts, "conv", **{**CHUNKS, "encoder_lookahead_s": lookahead})
    lengths = [1, 37, 44, NUM_MEL]
    rows = [torch.randn(length, 16) for length in lengths]
    features, _ = pad_recordings(rows, float("nan"))
    together = encode(model, features.transpose(1, 2), lengths)
    for row, hidden in zip(rows, together, strict=True):
        alone = encode(model, row.T[None])[0]
        torch.testing.assert_close(hidden[: len(alone)], alone, **KERNEL_NOISE)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_training_with_chunks(parts, recordings, is_frozen):
    model, processor = compose(parts, "moe_cif", **CHUNKS, freeze_audio=is_frozen)
    model.train()
    outputs = model(**training_batch(processor, recordings))
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in model.model.audio_tower.layers.parameters()]
    assert all((gradient is None) == is_frozen for gradient in gradients)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_training_draws_chunks(parts):
    model, _ = compose(parts, "conv", **CHUNKS, encoder_training_chunks_s=[0.2, 0.5])
    features = torch.randn(1, 16, NUM_MEL)
    expected = {}
    for seconds in (0.2, 0.5, None):
        if seconds is None:
            fixed, _ = compose(parts, "conv")
        else:
            fixed, _ = compose(parts, "conv", **{**CHUNKS, "encoder_chunk_s": seconds})
        expected[seconds] = encode(fixed, features)
    model.train()
    model.model.audio_tower.eval()

    def which(hidden):
        return [key for key, value in expected.items() if torch.allclose(hidden, value, atol=1e-5)]

    torch.manual_seed(0)
    draws = [which(encode(model, features)) for _ in range(30)]
    assert all(len(draw) == 1 for draw in draws)
    counts = {key: draws.count([key]) for key in expected}
    assert min(counts.values()) >= 3
    torch.manual_seed(0)
    assert [which(encode(model, features)) for _ in range(30)] == draws
    model.eval()
    assert which(encode(model, features)) == [0.2]


def test_the_attention_is_a_part_of_the_checkpoint(parts, tmp_path):
    model, _ = compose(parts, "cif", **CHUNKS, encoder_training_chunks_s=[0.2, 1.0])
    model.save_pretrained(tmp_path)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.attention_chunks == AttentionChunks(size=10, left=5, lookahead=3)
    assert loaded.config.encoder_training_chunks_s == [0.2, 1.0]
    features = torch.randn(1, 16, NUM_MEL)
    assert torch.equal(encode(loaded, features), encode(model, features))
    loaded.config.set_encoder_attention("full")
    loaded.save_pretrained(tmp_path / "full")
    assert LlmAsrConfig.from_pretrained(tmp_path / "full").attention_chunks is None


def test_defaults_and_checks_of_the_options():
    config = LlmAsrConfig(encoder_attention="chunked")
    assert config.attention_chunks == AttentionChunks(size=50, left=500, lookahead=0)
    assert LlmAsrConfig().attention_chunks is None
    for options, message in (
        ({"encoder_attention": "causal"}, "`encoder_attention` must be one of"),
        ({"encoder_chunk_s": 1.0}, "`encoder_chunk_s` is an option of `encoder_attention='chunked'`"),
        ({"encoder_training_chunks_s": [1.0]}, "`encoder_training_chunks_s` is an option of"),
        ({"encoder_attention": "chunked", "encoder_chunk_s": 0.03}, "`encoder_chunk_s` must be a multiple of 0.02 s"),
        ({"encoder_attention": "chunked", "encoder_chunk_s": 0.0}, "at least 0.02, got 0.0"),
        (
            {"encoder_attention": "chunked", "encoder_left_context_s": -1.0},
            "`encoder_left_context_s` must be a multiple",
        ),
        (
            {"encoder_attention": "chunked", "encoder_lookahead_s": float("nan")},
            "`encoder_lookahead_s` must be a multiple",
        ),
        ({"encoder_attention": "chunked", "encoder_training_chunks_s": []}, "must have at least one entry"),
        ({"encoder_attention": "chunked", "encoder_training_chunks_s": [0.0]}, "`encoder_training_chunks_s` must be"),
        ({"encoder_attention": "chunked", "encoder_padding": "max_length"}, "use 'longest' with"),
        (
            {"encoder_attention": "chunked", "audio_config": {"model_type": "parakeet_encoder"}},
            "is for Whisper's and Voxtral's encoders",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            LlmAsrConfig(**options)


def test_attention_without_a_mask_is_refused(parts):
    model, _ = compose(parts, "conv", **CHUNKS)
    model.model.audio_tower.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match="needs attention with a mask, and the speech encoder has 'flash_attention_2'"
    ):
        encode(model, torch.randn(1, 16, NUM_MEL))


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_convolution_in_blocks(kernel_size, stride):
    conv = torch.nn.Conv1d(4, 6, kernel_size, stride=stride, padding=kernel_size // 2)
    frames = torch.randn(37, 4)
    expected = conv(frames.T[None])[0].T
    for sizes in ([1] * 37, [5, 0, 9, 20, 3], [37]):
        streaming = StreamingConvolution(conv)
        outputs = [streaming.push(block) for block in frames.split(sizes)]
        outputs.append(streaming.push(frames[:0], is_last=True))
        torch.testing.assert_close(torch.cat(outputs), expected)


@pytest.mark.parametrize("projector_type", ["conv", "cif"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_the_look_ahead_of_the_projector_is_counted(parts, projector_type, kernel_size):
    model, _ = compose(parts, projector_type, conv_kernel_size=kernel_size)
    hidden_states = torch.randn(1, 60, 32, requires_grad=True)
    mask = torch.ones(1, 60, dtype=torch.bool)
    if projector_type == "cif":
        outputs = model.model.projector(hidden_states, mask).alphas[0, 5]
        frame = 10
    else:
        outputs = model.model.projector(hidden_states, mask).embeds[5].sum()
        frame = 20
    outputs.backward()
    last = int(hidden_states.grad[0].abs().sum(-1).nonzero().max())
    assert (last - frame) * 0.02 == pytest.approx(model.config.projector_lookahead_s)
