"""Converted speech language models compute what their sources compute in Transformers."""

import asyncio
import inspect
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import check_same_tokens
from test_transformers_engine import continue_prompts
from tiny_models import save_tiny_qwen2
from tiny_speech_llms import SAVERS, reason_of_absence, save_qwen2_audio
from transformers import AutoModelForSeq2SeqLM, AutoProcessor, pipeline

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.modeling.speech_llm_families import FAMILIES, REFUSED
from llm_asr.publishing.export import export_for_serving
from llm_asr.publishing.front_end import LlmAsrFrontEnd
from llm_asr.serving.engine import Decoding


RATE = 16_000
NUM_TOKENS = 8


def make_recording(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise with the values of 16 bits, which Voxtral's processor writes into a file."""
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, int(seconds * RATE))
    return (np.rint(noise * 32768) / 32768).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(SAVERS))
def family(request, tmp_path_factory):
    """The type of a family, the folder of a source, and the model and the processor that it becomes."""
    if reason := reason_of_absence(request.param):
        pytest.skip(reason)
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp(request.param))
    SAVERS[request.param](folder)
    return (
        request.param,
        folder,
        LlmAsrForConditionalGeneration.from_speech_llm(folder),
        LlmAsrProcessor.from_speech_llm(folder),
    )


def ask_source(name: str, source: str, recordings: list[np.ndarray], prompt=None, language=None):
    """What the source's processor makes of its own request."""
    family = FAMILIES[name]
    processor = AutoProcessor.from_pretrained(source)
    if name == "voxtral":
        return processor.apply_transcription_request(
            recordings,
            "voxtral",
            language={"Spanish": "es", None: None}[language],
            sampling_rate=RATE,
            format="wav",
            # The window of the tiny model.
            audio_kwargs={"pad_to_multiple_of": 4 * RATE, "max_source_positions": 400},
        )
    request = family.request.replace(
        "{% if language %} in {{ language }}{% endif %}", f" in {language}" if language else ""
    )
    conversation = family.write_conversation(request, prompt)
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    if name == "qwen3_asr" and language:
        text += f"language {language}<asr_text>"
    return processor(text=[text] * len(recordings), audio=recordings, return_tensors="pt")


def expand(processor, inputs, lengths: list[int]) -> list[list[int]]:
    """Token ids without padding, with the audio token as often as a recording has embeddings."""
    rows = []
    for ids, mask, length in zip(inputs["input_ids"], inputs["attention_mask"], lengths, strict=True):
        rows.append(
            [one for one in ids[mask.bool()].tolist() for _ in range(length if one == processor.audio_token_id else 1)]
        )
    return rows


# What fills the window, and what ends in the middle of a frame.
@pytest.mark.parametrize("seconds", [4.0, 1.7, 0.533])
@torch.no_grad()
def test_prompt_embeddings_logits_and_tokens_are_those_of_the_source(family, seconds):
    name, source, model, processor = family
    recording = make_recording(seconds)
    expected = ask_source(name, source, [recording])
    inputs = processor.apply_transcription_request([recording])
    features = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    assert expand(processor, inputs, features.audio_lengths.tolist()) == expected["input_ids"].tolist()
    source_model = AutoModelForSeq2SeqLM.from_pretrained(source).eval()
    if hasattr(source_model, "get_audio_features"):
        taken = inspect.signature(source_model.get_audio_features).parameters
        arguments = {
            one: value
            for one, value in expected.items()
            if one in taken or ("args" in taken and one == "input_features")
        }
        embeds = source_model.get_audio_features(**arguments).pooler_output.flatten(0, -2)
        torch.testing.assert_close(features.pooler_output, embeds, rtol=1e-5, atol=1e-5)
    logits = source_model(**expected).logits[0, -1]
    found = model(**inputs).logits[0, -1, : len(logits)]
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    options = {"do_sample": False, "max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS}
    answer = source_model.generate(**expected, **options)[0, expected["input_ids"].shape[1] :]
    assert model.generate(**inputs, **options)[0, -NUM_TOKENS:].tolist() == answer.tolist()


@torch.no_grad()
def test_recordings_of_a_batch_are_as_alone(family):
    _, _, model, processor = family
    recordings = [make_recording(1.7, 1), make_recording(0.9, 2)]
    together = processor.apply_transcription_request(recordings)
    features = model.get_audio_features(together["input_features"], together["input_features_mask"])
    rows = features.pooler_output.split(features.audio_lengths.tolist())
    for recording, row in zip(recordings, rows, strict=True):
        alone = processor.apply_transcription_request([recording])
        expected = model.get_audio_features(alone["input_features"], alone["input_features_mask"]).pooler_output
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_several_recordings_in_a_prompt(tmp_path):
    """Of the families whose processors are in Transformers, Qwen2-Audio's takes several recordings in a conversation."""
    torch.manual_seed(0)
    save_qwen2_audio(str(tmp_path))
    recordings = [make_recording(1.7, 1), make_recording(4.0, 2)]
    source_processor = AutoProcessor.from_pretrained(tmp_path)
    content = [{"type": "audio", "audio_url": "x"} for _ in recordings] + [
        {"type": "text", "text": "Which is longer?"}
    ]
    text = source_processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    expected = source_processor(text=text, audio=recordings, sampling_rate=RATE, return_tensors="pt")
    processor = LlmAsrProcessor.from_speech_llm(str(tmp_path))
    inputs = processor(text=text, audio=recordings)
    model = LlmAsrForConditionalGeneration.from_speech_llm(str(tmp_path))
    counts = iter(
        model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).audio_lengths.tolist()
    )
    tokens = [
        one
        for one in inputs["input_ids"][0].tolist()
        for _ in range(next(counts) if one == processor.audio_token_id else 1)
    ]
    assert [tokens] == expected["input_ids"].tolist()
    source_model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        model(**inputs).logits[0, -1], source_model(**expected).logits[0, -1], rtol=1e-5, atol=1e-5
    )
    options = {"do_sample": False, "max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS}
    answer = source_model.generate(**expected, **options)[0, expected["input_ids"].shape[1] :]
    assert model.generate(**inputs, **options)[0, -NUM_TOKENS:].tolist() == answer.tolist()


@pytest.mark.parametrize(("prompt", "language"), [("A talk.\nNames: Iñigo", None), (None, "Spanish")])
def test_context_and_language_are_written_as_in_the_source(family, prompt, language):
    name, source, model, processor = family
    if name == "voxtral" and prompt is not None:
        pytest.skip("Voxtral's transcription request has no context")
    recording = make_recording(1.0)
    expected = ask_source(name, source, [recording], prompt, language)
    inputs = processor.apply_transcription_request([recording], prompt=prompt, language=language)
    features = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    assert expand(processor, inputs, features.audio_lengths.tolist()) == expected["input_ids"].tolist()


def test_saved_checkpoints_are_the_same_and_transcribe(family, tmp_path):
    name, _, model, processor = family
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    recording = make_recording(1.7)
    again = LlmAsrProcessor.from_pretrained(tmp_path)
    inputs = processor.apply_transcription_request([recording], language="es")
    for key, value in again.apply_transcription_request([recording], language="es").items():
        assert torch.equal(value, inputs[key])
    loaded = LlmAsrForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.converted_from == {
        "name_or_path": model.config.converted_from["name_or_path"],
        "revision": None,
        "model_type": name,
        "license": None,
    }
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    pipe = pipeline("automatic-speech-recognition", model=str(tmp_path))
    # Longer than the window, so that it is split.
    result = pipe(make_recording(9.0), generate_kwargs={"max_new_tokens": 4}, return_timestamps=True)
    assert isinstance(result["text"], str)


def test_export_and_server_write_the_tokens_of_the_model(family, tmp_path):
    _, _, model, processor = family
    recordings = [make_recording(1.7, 1), make_recording(0.9, 2)]
    export_for_serving(model, processor, tmp_path / "out")
    check_same_tokens(model, processor, tmp_path / "out", recordings, requests=[{}, {"language": "es"}])
    request = processor.apply_transcription_request(recordings)
    prompts = LlmAsrFrontEnd.from_pretrained(tmp_path / "out/front_end")(**request)
    expected = model.generate(**request, max_new_tokens=NUM_TOKENS).tolist()
    for prompt in prompts:
        prompt.max_new_tokens = NUM_TOKENS
    found, _ = asyncio.run(continue_prompts(tmp_path / "out/language_model", prompts, Decoding(temperature=0.0)))
    for tokens, row in zip(found, expected, strict=True):
        assert tokens.ids == row[: len(tokens.ids)]


def test_command_converts_sharded_bfloat16(tmp_path):
    torch.manual_seed(0)
    save_qwen2_audio(str(tmp_path / "source"), torch.bfloat16, max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 1
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "out")]) == 0
    model = LlmAsrForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = LlmAsrProcessor.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.generation_config.do_sample is False
    assert model.generation_config.transcription_prompt_ids == processor.transcription_prompt_ids
    source = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "source", dtype="auto")
    assert torch.equal(model.lm_head.weight, source.get_output_embeddings().weight)


def test_licence_of_the_source_is_told(tmp_path):
    save_qwen2_audio(str(tmp_path / "qwen"))
    (tmp_path / "qwen/README.md").write_text("---\nlicense: apache-2.0\n---\n# Qwen\n", encoding="utf-8")
    model = LlmAsrForConditionalGeneration.from_speech_llm(str(tmp_path / "qwen"))
    told = {"name_or_path": "qwen", "revision": None, "model_type": "qwen2_audio", "license": "apache-2.0"}
    assert model.config.converted_from == told


def test_missing_weights_are_an_error(tmp_path):
    save_qwen2_audio(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: one for name, one in weights.items() if "projector" not in name},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="multi_modal_projector"):
        LlmAsrForConditionalGeneration.from_speech_llm(str(tmp_path))


def test_other_models_are_refused_before_weights_are_read(tmp_path):
    save_tiny_qwen2(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    for part in (LlmAsrForConditionalGeneration, LlmAsrProcessor):
        with pytest.raises(ValueError, match="model_type 'qwen2'"):
            part.from_speech_llm(str(tmp_path))


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_families_that_cannot_be_converted_say_why(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": {"AutoConfig": "x.Y"}}))
    with pytest.raises(ValueError, match=re.escape(REFUSED[model_type])):
        LlmAsrProcessor.from_speech_llm(str(tmp_path))


def test_template_of_another_family_is_refused(tmp_path):
    save_qwen2_audio(str(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['role'] }}", encoding="utf-8")
    with pytest.raises(ValueError, match="writes .* 0 times, where one is expected"):
        LlmAsrProcessor.from_speech_llm(str(tmp_path))


def test_answers_of_qwen3_asr_name_the_language(tmp_path):
    if reason := reason_of_absence("qwen3_asr"):
        pytest.skip(reason)
    SAVERS["qwen3_asr"](str(tmp_path))
    processor = LlmAsrProcessor.from_speech_llm(str(tmp_path))
    for answer, expected in {
        "language English<asr_text>one two": {"text": "one two", "language": "English", "languages": ["English"]},
        "language None<asr_text>": {"text": "", "language": None, "languages": []},
        "one two": {"text": "one two", "language": None, "languages": []},
    }.items():
        ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert processor.decode(ids, return_language=True) == expected
    may_name = {
        text: processor.may_name_languages(text) for text in ("lang", "language Engl", "language Elvish", "one")
    }
    assert may_name == {"lang": True, "language Engl": True, "language Elvish": False, "one": False}
    trained = processor.apply_transcription_request(
        make_recording(1.0), language="en", identify_language=True, transcription="one two"
    )
    labels = trained["labels"][trained["labels"] != -100]
    assert processor.tokenizer.decode(labels) == "language English<asr_text>one two<|im_end|>"
