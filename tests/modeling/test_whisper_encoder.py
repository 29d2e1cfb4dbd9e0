"""Compares the model's speech encoders with those of Transformers."""

import pytest
import torch
from model_batches import GREEDY, KERNEL_NOISE
from tiny_models import compose, save_tiny_wav2vec2_bert
from transformers import AutoModel, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from llm_asr import LlmAsrForConditionalGeneration
from llm_asr.modeling.whisper_encoder import LlmAsrWhisperEncoder


def test_an_adapter_of_wav2vec2_bert_is_refused(parts, tmp_path):
    """The adapter is a convolution over time, which would read padding."""
    save_tiny_wav2vec2_bert(tmp_path, add_adapter=True, num_adapter_layers=2)
    with pytest.raises(ValueError, match="`add_adapter=True`, whose convolutions read padding"):
        compose({**parts, "adapter": str(tmp_path)}, "conv", audio="adapter")


def test_a_new_whisper_encoder_has_sinusoidal_positions(shared_model):
    """Positions are frozen, so random positions would stay random."""
    model, _ = shared_model("conv", "whisper", "qwen2")
    untrained = LlmAsrForConditionalGeneration(model.config)
    expected = WhisperEncoder(model.config.audio_config).embed_positions.weight
    torch.testing.assert_close(untrained.model.audio_tower.embed_positions.weight, expected)


def whisper_encoders(parts):
    whisper = AutoModel.from_pretrained(parts["whisper"]).encoder.eval()
    ours = LlmAsrWhisperEncoder(whisper.config).eval()
    ours.load_state_dict(whisper.state_dict())
    assert type(whisper) is WhisperEncoder
    return ours, whisper


def test_a_full_window_is_encoded_as_in_whisper(parts):
    ours, whisper = whisper_encoders(parts)
    features = torch.randn(2, 16, 2 * whisper.config.max_source_positions)
    hidden_states, mask = ours(features, torch.ones(2, features.shape[-1])).to_tuple()
    assert mask.all()
    torch.testing.assert_close(hidden_states, whisper(features).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_padding_beyond_the_window_is_cut_and_frames_beyond_it_are_refused(parts):
    ours, whisper = whisper_encoders(parts)
    longest = 2 * whisper.config.max_source_positions
    features = torch.randn(1, 16, longest + 2)
    mask = (torch.arange(longest + 2) < longest)[None]
    hidden_states = ours(features, mask).last_hidden_state
    torch.testing.assert_close(hidden_states, whisper(features[..., :longest]).last_hidden_state, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=rf"{longest + 2} mel frames .* takes {longest}"):
        ours(features, torch.ones_like(mask))


@pytest.mark.parametrize("length", [1, 2, 37, 300])
def test_whisper_padding_does_not_matter(parts, length):
    ours, _ = whisper_encoders(parts)
    features = torch.randn(2, 16, 300)
    alone, alone_mask = ours(features[:1, :, :length], torch.ones(1, length)).to_tuple()
    assert alone_mask.shape[1] == (length + 1) // 2
    soiled = features.clone()
    soiled[0, :, length:] = float("nan")
    mask = torch.arange(300) < torch.tensor([[length], [300]])
    together, mask = ours(soiled, mask).to_tuple()
    torch.testing.assert_close(together[0][mask[0]], alone[0], **KERNEL_NOISE)
    torch.testing.assert_close(together[1], ours(features[1:], torch.ones(1, 300))[0][0], **KERNEL_NOISE)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
@pytest.mark.parametrize("through_config", [True, False])
def test_outputs_of_the_encoder_layers(parts, recordings, name, through_config):
    """The outputs have the same form as those of `get_audio_features` in Transformers' audio language models."""
    model, processor = compose(parts, "moe_cif")
    if name == "output_attentions":
        model.set_attn_implementation("eager")
    inputs = processor(audio=recordings)
    expected = model.get_audio_features(**inputs)
    assert expected.hidden_states is None
    assert expected.attentions is None
    if through_config:
        setattr(model.config.audio_config, name, True)
    outputs = model.get_audio_features(**inputs, **({} if through_config else {name: True}))
    torch.testing.assert_close(outputs.pooler_output, expected.pooler_output)
    num_rows, num_frames, _ = outputs.last_hidden_state.shape
    num_layers = model.config.audio_config.encoder_layers
    if name == "output_hidden_states":
        assert len(outputs.hidden_states) == num_layers + 1
        torch.testing.assert_close(outputs.hidden_states[-1], outputs.last_hidden_state)
        assert outputs.attentions is None
    else:
        assert [tuple(one.shape[::2]) for one in outputs.attentions] == [(num_rows, num_frames)] * num_layers
        assert outputs.hidden_states is None


def recordings_that_end_in_silence(*num_samples):
    """Recordings whose last window extends beyond their end and contains only silence there."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.cat([0.1 * torch.randn(count, generator=generator), torch.zeros(400)]).numpy() for count in num_samples
    ]


def test_max_length_equals_the_padding_of_whisper(parts):
    """This includes quiet recordings, whose silence has the feature extractor's lowest value."""
    ours, whisper = whisper_encoders(parts)
    extractor = WhisperFeatureExtractor.from_pretrained(parts["whisper"])
    loud, long = recordings_that_end_in_silence(7600, 30000)
    features = extractor(
        [loud, long, 1e-5 * long], sampling_rate=16000, return_attention_mask=True, return_tensors="pt"
    )
    expected = whisper(features["input_features"]).last_hidden_state
    # Cut the features as the processor does, and overwrite the padding.
    longest = int(features["attention_mask"].sum(-1).max())
    mask = features["attention_mask"][:, :longest]
    cut = features["input_features"][..., :longest].masked_fill(~mask[:, None].bool(), float("nan"))
    hidden_states, real = ours(cut, mask, padding="max_length").to_tuple()
    assert real.sum(-1).tolist() == [25, 95, 95]
    torch.testing.assert_close(hidden_states[real], expected[:, : real.shape[1]][real], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(hidden_states[real], ours(cut, mask)[0][real], atol=1e-2)


def test_encoder_padding_is_saved_in_the_checkpoint(parts, tmp_path):
    model, processor = compose(parts, "moe_cif", encoder_padding="max_length")
    model.save_pretrained(tmp_path)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.encoder_padding == "max_length"
    audio = recordings_that_end_in_silence(7600, 30000)
    together = processor.apply_transcription_request(audio)
    tokens = loaded.generate(**together, **GREEDY)
    for row, recording in enumerate(audio):
        for audio_padding in ("longest", "max_length"):
            alone = processor.apply_transcription_request(recording, audio_padding=audio_padding)
            assert torch.equal(loaded.generate(**alone, **GREEDY)[0], tokens[row])
    plain, _ = compose(parts, "moe_cif")
    longest = plain.model.get_audio_hidden_states(together["input_features"], together["input_features_mask"])[0]
    padded = loaded.model.get_audio_hidden_states(together["input_features"], together["input_features_mask"])[0]
    assert longest.shape == padded.shape
    assert not torch.allclose(longest, padded, atol=1e-2)


def test_features_after_the_end_are_read_by_convolutions_and_not_by_attention(parts):
    ours, whisper = whisper_encoders(parts)
    extractor = WhisperFeatureExtractor.from_pretrained(parts["whisper"])
    options = {"sampling_rate": 16000, "return_attention_mask": True, "return_tensors": "pt"}
    features, mask = extractor(recordings_that_end_in_silence(7600, 30000), **options).values()
    hidden_states, real = ours(features, mask, padding="features").to_tuple()
    # The frames after the convolutions are Whisper's.
    frames = {}
    for name, encoder, kwargs in (
        ("ours", ours, {"attention_mask": mask, "padding": "features"}),
        ("whisper", whisper, {}),
    ):
        hook = encoder.layers[0].register_forward_hook(lambda _, args, __, name=name: frames.update({name: args[0]}))
        encoder(features, **kwargs)
        hook.remove()
    for row, length in enumerate(real.sum(-1).tolist()):
        torch.testing.assert_close(frames["ours"][row, :length], frames["whisper"][row, :length])
    # What follows the two frames that convolutions see changes nothing.
    changed = features.clone()
    longest = int(mask.sum(-1).max())
    changed[..., longest + 2 :] = 9.0
    again, _ = ours(changed, mask, padding="features").to_tuple()
    assert torch.equal(again[real], hidden_states[real])
    with pytest.raises(ValueError, match="pass `audio_padding='max_length'` to the processor"):
        ours(features[..., :longest], mask[:, :longest], padding="features")


def test_a_model_that_reads_padding_needs_a_processor_that_keeps_it(parts):
    with pytest.raises(
        ValueError, match="`audio_padding` of the processor is 'longest'; pass `audio_padding='max_length'`"
    ):
        compose(parts, "conv", encoder_padding="features")
