"""Converted speech language models compute what their sources compute in Transformers."""

import re

import numpy as np
import pytest
import torch
from tiny_models import make_tokenizer, save_tiny_qwen2
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
    pipeline,
)

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.conversion.speech_llm import convert_speech_llm


RATE = 16_000
NUM_TOKENS = 8
TEXT = {
    "model_type": "qwen2",
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
AUDIO = {
    "model_type": "qwen2_audio_encoder",
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 150,
    "initializer_range": 0.2,
}


def save_source(folder, dtype: torch.dtype = torch.float32, **kwargs) -> None:
    """Save a tiny Qwen2-Audio, whose window is 3 s, as it is published: processor, generation settings and weights."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]})
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=3), tokenizer)
    config = AutoConfig.for_model(
        "qwen2_audio",
        audio_config=AUDIO,
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        audio_token_index=processor.audio_token_id,
    )
    model = AutoModelForSeq2SeqLM.from_config(config).to(dtype)
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, top_k=20
    )
    model.save_pretrained(folder, **kwargs)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    save_source(folder)
    return str(folder)


@pytest.fixture(scope="module")
def converted(source):
    return convert_speech_llm(source)


def make_recording(seconds: float, seed: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32)


def ask_source(source: str, recordings: list[np.ndarray], request: str) -> tuple[PreTrainedModel, dict]:
    model = AutoModelForSeq2SeqLM.from_pretrained(source).eval()
    processor = Qwen2AudioProcessor.from_pretrained(source)
    content = [{"type": "audio", "audio_url": "x"} for _ in recordings] + [{"type": "text", "text": request}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return model, processor(text=text, audio=recordings, sampling_rate=RATE, return_tensors="pt")


def expand(input_ids: torch.Tensor, token_id: int, lengths: list[int]) -> list[int]:
    """Write the audio token as often as a recording has embeddings."""
    counts = iter(lengths)
    return [token for one in input_ids.tolist() for token in [one] * (next(counts) if one == token_id else 1)]


@pytest.mark.parametrize("num_recordings", [1, 2])
@torch.no_grad()
def test_prompt_logits_and_tokens_are_those_of_the_source(source, converted, num_recordings):
    model, processor = converted
    recordings = [make_recording(3.0, seed) for seed in range(num_recordings)]
    source_model, expected = ask_source(source, recordings, "Transcribe the speech.")
    text = processor.tokenizer.decode(expected["input_ids"][0])
    text = re.sub(r"(<\|AUDIO\|>)+", processor.audio_token, text)
    inputs = processor(text=text, audio=recordings)
    tokens = expand(inputs["input_ids"][0], processor.audio_token_id, [75] * num_recordings)
    assert tokens == expected["input_ids"][0].tolist()
    found = model(**inputs).logits[0, -1]
    torch.testing.assert_close(found, source_model(**expected).logits[0, -1], rtol=1e-5, atol=1e-5)
    options = {"do_sample": False, "max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS}
    start = expected["input_ids"].shape[1]
    answer = source_model.generate(**expected, **options)[0, start:]
    assert model.generate(**inputs, **options)[0, -NUM_TOKENS:].tolist() == answer.tolist()


def test_transcription_request_is_the_prompt_of_the_source(source, converted):
    recording = make_recording(3.0, 0)
    _, expected = ask_source(source, [recording], "Transcribe the speech in Spanish.")
    processor = converted[1]
    inputs = processor.apply_transcription_request(recording, language="es")
    tokens = expand(inputs["input_ids"][0], processor.audio_token_id, [75])
    assert tokens == expected["input_ids"][0].tolist()


@torch.no_grad()
def test_recordings_shorter_than_the_window_differ_only_by_the_silence_after_their_end(source, converted):
    model, processor = converted
    recording = make_recording(1.7, 5)
    source_model, expected = ask_source(source, [recording], "Transcribe the speech.")
    inputs = processor.apply_transcription_request(recording)
    tokens = expand(inputs["input_ids"][0], processor.audio_token_id, [42])
    assert tokens == expected["input_ids"][0].tolist()
    logits = source_model(**expected).logits[0, -1]
    assert (model(**inputs).logits[0, -1] - logits).norm() < 0.05 * logits.norm()


def test_command_converts_sharded_bfloat16_and_the_pipeline_reads_it(tmp_path, converted):
    save_source(tmp_path / "source", torch.bfloat16, max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 1
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "out")]) == 0
    model = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = LlmAsrProcessor.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.generation_config.do_sample is False
    assert model.generation_config.transcription_prompt_ids == processor.transcription_prompt_ids
    weights, expected = model.lm_head.weight, converted[0].lm_head.weight
    assert torch.equal(weights, expected.bfloat16())
    pipe = pipeline("automatic-speech-recognition", model=str(tmp_path / "out"))
    assert isinstance(pipe(make_recording(1.0, 0), generate_kwargs={"max_new_tokens": 4})["text"], str)


def test_other_models_are_refused_before_weights_are_read(tmp_path):
    save_tiny_qwen2(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model_type 'qwen2'"):
        convert_speech_llm(str(tmp_path))
