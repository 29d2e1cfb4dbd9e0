"""Adds a speech encoder, a projector and a task as `CONTRIBUTING.md` describes."""

import pytest
import torch
from tiny_models import PROJECTOR_KWARGS, compose
from transformers import AutoConfig, Speech2TextConfig, Speech2TextFeatureExtractor, Speech2TextModel

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrPipeline, LlmAsrProcessor, LlmAsrProjectorConfig
from llm_asr.modeling import configuration_projector, projector_llm_asr
from llm_asr.modeling.projector_base import LlmAsrProjector, ReducedFrames
from llm_asr.modeling.speech_encoder import SpeechEncoder, run_by_length
from llm_asr.modeling.speech_encoders import SPEECH_ENCODERS
from llm_asr.publishing.checkpoint_forms import save_checkpoint


GREEDY = {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}


class Speech2TextFamily(SpeechEncoder):
    """The encoder of fairseq's Speech2Text."""

    model_types = ("speech_to_text",)
    weight_prefix = r"(model\.)?encoder\."

    def find_class(self, audio_config):
        from transformers.models.speech_to_text.modeling_speech_to_text import Speech2TextEncoder

        return Speech2TextEncoder

    def run(self, tower, features, mask, padding, **kwargs):
        return run_by_length(lambda rows: tower(rows, **kwargs).last_hidden_state, features, mask, time_dim=1)

    def count_samples_per_feature(self, audio_config, feature_extractor):
        return feature_extractor.sampling_rate // 100

    def count_samples_per_frame(self, audio_config, feature_extractor):
        return 2**audio_config.num_conv_layers * self.count_samples_per_feature(audio_config, feature_extractor)


class LinearProjector(LlmAsrProjector):
    """A linear layer on every fourth frame, then the layers that all types have."""

    def __init__(self, config):
        super().__init__(config)
        self.stride = config.projector_config.downsampling
        self.linear = torch.nn.Linear(config.audio_config.hidden_size, config.projector_config.hidden_size)
        self.add_text_layers(config)

    def reduce_frames(self, hidden_states, attention_mask, target_lengths=None, token_embeddings=None):
        is_real = attention_mask[:, :: self.stride]
        return ReducedFrames(self.linear(hidden_states[:, :: self.stride][is_real]), is_real.sum(-1))


@pytest.fixture
def speech_to_text(monkeypatch, tmp_path):
    """A checkpoint of a whole model whose family is in the registry."""
    monkeypatch.setattr("llm_asr.modeling.speech_encoders.SPEECH_ENCODERS", [*SPEECH_ENCODERS, Speech2TextFamily()])
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "init_std": 0.2}
    sizes.update(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=32, conv_channels=16)
    config = Speech2TextConfig(**sizes, input_feat_per_channel=80)
    Speech2TextModel(config).save_pretrained(tmp_path / "speech2text")
    Speech2TextFeatureExtractor().save_pretrained(tmp_path / "speech2text")
    return str(tmp_path / "speech2text")


def test_a_speech_encoder_needs_one_class_and_one_entry(speech_to_text, parts, recordings, tmp_path):
    model, processor = compose({**parts, "new": speech_to_text}, "moe_cif", audio="new")
    published = Speech2TextModel.from_pretrained(speech_to_text).encoder
    for name, tensor in model.model.audio_tower.state_dict().items():
        assert torch.equal(tensor, published.state_dict()[name])
    assert processor.samples_per_frame == 640
    together = model.generate(**processor.apply_transcription_request(recordings), **GREEDY)
    for row, recording in enumerate(recordings):
        alone = model.generate(**processor.apply_transcription_request(recording), **GREEDY)
        assert torch.equal(alone[0], together[row])
    texts = LlmAsrPipeline(model=model, processor=processor)(recordings, batch_size=3, generate_kwargs=GREEDY)
    assert len(texts) == 3
    batch = processor.apply_transcription_request(recordings, transcription=["one", "two three", "uno dos"])
    model.train()(**batch).loss.backward()
    model.eval()
    for form in ("full", "slim"):
        save_checkpoint(model, processor, tmp_path / form, form=form)
        loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / form)
        again = LlmAsrProcessor.from_pretrained(tmp_path / form).apply_transcription_request(recordings)
        assert torch.equal(loaded.generate(**again, **GREEDY), together)


def test_without_the_entry_the_family_is_refused(speech_to_text, parts, monkeypatch):
    monkeypatch.setattr("llm_asr.modeling.speech_encoders.SPEECH_ENCODERS", SPEECH_ENCODERS)
    assert AutoConfig.from_pretrained(speech_to_text).model_type == "speech_to_text"
    with pytest.raises(ValueError, match="'speech_to_text'; supported speech encoders are"):
        compose({**parts, "new": speech_to_text}, "moe_cif", audio="new")


def test_a_projector_needs_one_class_and_its_name(parts, recordings, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`projector_type` must be one of"):
        LlmAsrProjectorConfig(projector_type="linear")
    names = (*configuration_projector.PROJECTOR_TYPES, "linear")
    monkeypatch.setattr(configuration_projector, "PROJECTOR_TYPES", names)
    monkeypatch.setitem(projector_llm_asr.PROJECTORS, "linear", LinearProjector)
    model, processor = compose(parts, "linear")
    batch = processor.apply_transcription_request(recordings, transcription=["one", "two three", "uno dos"])
    model.train()(**batch).loss.backward()
    assert model.model.projector.linear.weight.grad.any()
    model.eval().save_pretrained(tmp_path)
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path)
    request = processor.apply_transcription_request(recordings)
    tokens = model.generate(**request, **GREEDY)
    assert torch.equal(loaded.generate(**request, **GREEDY), tokens)
    for row, recording in enumerate(recordings):
        alone = model.generate(**processor.apply_transcription_request(recording), **GREEDY)
        assert torch.equal(alone[0], tokens[row])


def test_a_task_needs_a_template(parts, recordings, tmp_path):
    template = "{{ audio_token }}Translate the speech into {{ prompt or 'English' }}."
    processor = LlmAsrProcessor.from_audio_text_pretrained(
        parts["whisper"], parts["qwen2"], transcription_template=template
    )
    model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(
        parts["whisper"], parts["qwen2"], "conv", processor=processor, **PROJECTOR_KWARGS
    )
    batch = processor.apply_transcription_request(recordings[:1], prompt="Spanish", transcription="uno dos")
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert "Translate the speech into Spanish." in text
    assert text.count("uno dos") == 1
    model.train()(**batch).loss.backward()
    for part in (model.eval(), processor):
        part.save_pretrained(tmp_path)
    # This also holds without a request.
    prompt_ids = LlmAsrForConditionalGeneration.from_pretrained(tmp_path).generation_config.transcription_prompt_ids
    assert "Translate the speech into English." in processor.tokenizer.decode(prompt_ids)
    loaded = LlmAsrProcessor.from_pretrained(tmp_path)
    (prompt,) = loaded.apply_transcription_request(recordings[:1], tokenize=False)
    assert "Translate the speech into English." in prompt
