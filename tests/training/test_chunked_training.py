"""Recipes that train in chunks."""

import pytest
from datasets import Dataset
from tiny_models import PROJECTOR_KWARGS, compose

from llm_asr.modeling.chunked_attention import AttentionChunks
from llm_asr.training.arguments import ModelArguments
from llm_asr.training.feature_cache import cache_audio_hidden_states
from llm_asr.training.program import load_model


CHUNKED = {"encoder_attention": "chunked", "encoder_chunk_s": 0.4, "encoder_lookahead_s": 0.04}


@pytest.fixture
def dataset(recordings):
    return Dataset.from_dict({"audio": [recordings[0].tolist()]})


def test_a_recipe_composes_a_chunked_model(parts):
    options = {"audio_model": parts["whisper"], "text_model": parts["qwen2"], "projector": PROJECTOR_KWARGS}
    model, processor = load_model(ModelArguments(**options, **CHUNKED, encoder_training_chunks_s=[0.2, 1.0]))
    assert model.config.attention_chunks == AttentionChunks(size=20, left=500, lookahead=2)
    assert model.config.encoder_training_chunks_s == [0.2, 1.0]
    assert processor.log_mel_maximum == "running"
    model, processor = load_model(ModelArguments(**options))
    assert model.config.attention_chunks is None
    assert processor.log_mel_maximum == "recording"


def test_a_checkpoint_is_trained_further_in_chunks(parts, tmp_path):
    model, processor = compose(parts, "cif")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "full")
    for part in load_model(ModelArguments(model=str(tmp_path / "full"), **CHUNKED)):
        part.save_pretrained(tmp_path / "chunked")
    # By default the attention is that of the checkpoint.
    model, processor = load_model(ModelArguments(model=str(tmp_path / "chunked")))
    assert model.config.attention_chunks == AttentionChunks(size=20, left=500, lookahead=2)
    assert processor.log_mel_maximum == "running"


def test_options_of_chunks_without_chunks_are_refused(parts):
    with pytest.raises(ValueError, match="are options of `encoder_attention: chunked`; set that too"):
        ModelArguments(audio_model=parts["whisper"], text_model=parts["qwen2"], encoder_chunk_s=1.0)


def test_a_feature_cache_knows_the_chunks(parts, dataset, tmp_path):
    model, processor = compose(parts, "conv", **CHUNKED)
    files = []
    for seconds in (0.4, 0.2):
        model.config.set_encoder_attention("chunked", seconds)
        files += cache_audio_hidden_states(dataset, model, processor, tmp_path)["audio_hidden_states"]
    model.config.set_encoder_attention("full")
    files += cache_audio_hidden_states(dataset, model, processor, tmp_path)["audio_hidden_states"]
    processor.log_mel_maximum = "recording"
    files += cache_audio_hidden_states(dataset, model, processor, tmp_path)["audio_hidden_states"]
    assert len(set(files)) == 4
    model.config.set_encoder_attention("chunked", encoder_training_chunks_s=[0.2])
    with pytest.raises(ValueError, match="a feature cache encodes them only once"):
        cache_audio_hidden_states(dataset, model, processor, tmp_path)
