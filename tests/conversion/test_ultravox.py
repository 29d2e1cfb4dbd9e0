"""Converted Ultravox checkpoints compute what the code in their repositories computes, which is written here once more."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_speech_llm import make_recording
from tiny_speech_llms import save_ultravox
from transformers import AutoModelForCausalLM, Qwen2Config, WhisperFeatureExtractor, WhisperModel

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ultravox")
    save_ultravox(str(folder))
    return folder


def encode(source, recording) -> torch.Tensor:
    """Whisper's encoder at the length of the recording, as Ultravox runs it."""
    extractor = WhisperFeatureExtractor.from_pretrained(source / "encoder")
    options = {"padding": "longest", "pad_to_multiple_of": 160, "truncation": False}
    features = extractor(recording, sampling_rate=16_000, return_tensors="pt", **options)["input_features"]
    encoder = WhisperModel.from_pretrained(source / "encoder").encoder.eval()
    frames = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
    frames = frames + encoder.embed_positions.weight[: frames.shape[1]]
    for layer in encoder.layers:
        frames = layer(frames, None)
    return encoder.layer_norm(frames)[0]


def rms_norm(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6) * weight


def project(weights: dict[str, torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    """Stack four frames, the last of them zeros; SwiGLU between two linear layers."""
    norm_before, linear_1, norm_between, linear_2 = (
        weights[f"multi_modal_projector.{name}.weight"] for name in ("ln_pre", "linear_1", "ln_mid", "linear_2")
    )
    stacks = F.pad(frames, (0, 0, 0, -len(frames) % 4)).reshape(-1, 4 * frames.shape[1])
    value, gate = F.linear(rms_norm(stacks, norm_before), linear_1).chunk(2, dim=-1)
    return F.linear(rms_norm(F.silu(gate) * value, norm_between), linear_2)


@pytest.mark.parametrize("seconds", [4.0, 1.7, 0.533])
@torch.no_grad()
def test_prompt_embeddings_and_logits_are_those_of_the_source(source, seconds):
    model = LlmAsrForConditionalGeneration.from_speech_llm(str(source))
    processor = LlmAsrProcessor.from_speech_llm(str(source))
    recording = make_recording(seconds)
    weights = load_file(source / "model.safetensors")
    expected = project(weights, encode(source, recording))
    # The batch does not change a recording.
    inputs = processor(audio=[recording, make_recording(3.0)])
    features = model.get_audio_features(**inputs)
    found = features.pooler_output.split(features.audio_lengths.tolist())[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    tokenizer = processor.tokenizer
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Transcribe\n<|audio|>"}], add_generation_prompt=True, tokenize=False
    )
    # Ultravox tokenizes what is before and after the recording.
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split("<|audio|>"))
    inputs = processor.apply_transcription_request([recording])
    assert inputs["input_ids"].tolist() == [[*before, processor.audio_token_id, *after]]
    config = Qwen2Config(**json.loads((source / "config.json").read_text())["text_config"])
    language_model = AutoModelForCausalLM.from_config(config).eval()
    language_model.load_state_dict(
        {name.removeprefix("language_model."): one for name, one in weights.items() if "language_model" in name}
    )
    embedding = language_model.get_input_embeddings()
    prompt = torch.cat([embedding(torch.tensor(before)), expected, embedding(torch.tensor(after))])
    logits = language_model(inputs_embeds=prompt[None]).logits[0, -1]
    torch.testing.assert_close(model(**inputs).logits[0, -1, : len(logits)], logits, rtol=1e-5, atol=1e-5)


def test_saved_checkpoint_is_the_same(source, tmp_path):
    model = LlmAsrForConditionalGeneration.from_speech_llm(str(source))
    processor = LlmAsrProcessor.from_speech_llm(str(source))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = LlmAsrProcessor.from_pretrained(tmp_path).apply_transcription_request([make_recording(1.0)])
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.converted_from["model_type"] == "ultravox"
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("language_model.model.norm.weight"), "lack 1 tensor"),
        (lambda weights: weights.update({"language_model.q.lora_A.weight": torch.zeros(2)}), "LoRA"),
        (lambda weights: weights.update({"audio_tower.other": torch.zeros(2)}), "other"),
    ],
)
def test_incomplete_weights_are_an_error(tmp_path, change, message):
    save_ultravox(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        LlmAsrForConditionalGeneration.from_speech_llm(str(tmp_path))


def test_encoders_with_growing_blocks_are_refused(tmp_path):
    save_ultravox(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "audio_latency_block_size": 100}))
    with pytest.raises(ValueError, match="audio_latency_block_size=100"):
        LlmAsrProcessor.from_speech_llm(str(tmp_path))
