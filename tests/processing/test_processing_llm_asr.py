"""Composition, prompts, labels, features and errors of the processor."""

import numpy as np
import pytest
import torch
from tiny_models import make_tokenizer
from transformers import AutoProcessor, WhisperFeatureExtractor

from llm_asr import LlmAsrProcessor


@pytest.fixture(params=["whisper", "wav2vec2-bert", "parakeet", "moonshine"])
def any_processor(request, parts):
    return LlmAsrProcessor.from_audio_text_pretrained(parts[request.param], parts["qwen2"])


@pytest.fixture
def processor(parts):
    return LlmAsrProcessor.from_audio_text_pretrained(parts["whisper"], parts["qwen2"])


def test_composition_adds_the_audio_token_once(parts, processor, tmp_path):
    assert processor.tokenizer.convert_ids_to_tokens(processor.audio_token_id) == "<|audio|>"
    assert processor.audio_token in processor.tokenizer.all_special_tokens
    processor.tokenizer.save_pretrained(tmp_path)
    again = LlmAsrProcessor.from_audio_text_pretrained(parts["whisper"], str(tmp_path))
    assert again.audio_token_id == processor.audio_token_id
    assert len(again.tokenizer) == len(processor.tokenizer)


def test_composition_knows_the_speech_encoder(parts, processor):
    assert processor.samples_per_frame == 320
    assert processor.max_audio_samples == 150 * 320
    other = LlmAsrProcessor.from_audio_text_pretrained(parts["wav2vec2-bert"], parts["qwen2"])
    assert (other.samples_per_frame, other.max_audio_samples) == (320, None)


def test_composition_without_the_package_names_the_missing_import(parts, monkeypatch):
    """A published checkpoint's code does not register any classes."""
    monkeypatch.setattr("llm_asr.processing.processing_llm_asr.CONFIG_MAPPING", {})
    with pytest.raises(ValueError, match="`import llm_asr` first"):
        LlmAsrProcessor.from_audio_text_pretrained(parts["whisper"], parts["qwen2"])


def test_prompts_use_the_chat_template_of_the_language_model(processor, recordings):
    (prompt,) = processor.apply_transcription_request(recordings[:1], language="es", prompt="a date", tokenize=False)
    assert prompt == (
        "<|im_start|>user\n<|audio|>Transcribe the speech in Spanish. Context: a date<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_language_model_without_chat_template_or_padding_token(parts, recordings):
    processor = LlmAsrProcessor.from_audio_text_pretrained(parts["whisper"], parts["llama"])
    (prompt,) = processor.apply_transcription_request(recordings[:1], tokenize=False)
    assert prompt == "<|audio|>Transcribe the speech.\n"
    assert processor.tokenizer.pad_token == processor.tokenizer.eos_token
    batch = processor.apply_transcription_request(recordings[:2], transcription=["one", "one two three"])
    # The padding token is the end token, so only the mask distinguishes them.
    assert (batch["labels"] == processor.tokenizer.eos_token_id).sum() == 2


def test_features_are_the_same_alone_and_in_a_batch(any_processor, recordings):
    batch = any_processor(audio=recordings)
    lengths = batch["input_features_mask"].sum(-1)
    is_whisper = isinstance(any_processor.feature_extractor, WhisperFeatureExtractor)
    for row, recording in enumerate(recordings):
        alone = any_processor(audio=recording)
        assert alone["input_features_mask"].sum() == lengths[row]
        features, alone_features = batch["input_features"][row], alone["input_features"][0]
        if is_whisper:
            features, alone_features = features.T, alone_features.T
        real = slice(0, int(lengths[row]))
        assert torch.equal(features[real], alone_features[real])


def test_every_accepted_recording_has_a_frame(any_processor):
    """Otherwise the error would come from the model, after the whole batch was read."""
    refusals = []
    for samples in range(100, 1600, 100):
        try:
            inputs = any_processor(audio=np.full(samples, 0.1, dtype="float32"))
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert inputs["input_features_mask"].sum() > 0, samples
            assert inputs["input_features"].isfinite().all(), samples
    assert 0 < len(refusals) < 15
    assert all("less than one frame" in refusal for refusal in refusals)


@pytest.mark.parametrize("max_audio_samples", [None, 80000])
def test_the_feature_extractor_never_cuts_a_recording(processor, max_audio_samples):
    """By default, Whisper's feature extractor cuts recordings to its window, 3 s here."""
    unlimited = LlmAsrProcessor(processor.feature_extractor, processor.tokenizer, max_audio_samples=max_audio_samples)
    four_seconds = np.full(64000, 0.1, dtype="float32")
    assert unlimited(audio=four_seconds)["input_features_mask"].sum() == 400


def test_audio_padding(processor, recordings):
    longest = processor(audio=recordings)
    assert longest["input_features"].shape == (3, 16, 210)
    whole_window = processor(audio=recordings, audio_padding="max_length")
    assert whole_window["input_features"].shape == (3, 16, 300)
    assert torch.equal(whole_window["input_features"][..., :210], longest["input_features"])
    silent = processor(audio=recordings, audio_padding="silence")
    assert torch.equal(silent["input_features"], whole_window["input_features"])
    assert silent["input_features_mask"].tolist() == [[1] * 300] * 3
    mirrored = processor(audio=recordings, audio_padding="mirror")
    assert torch.equal(mirrored["input_features_mask"], longest["input_features_mask"])
    differ = (mirrored["input_features"] != longest["input_features"]).any(1)
    # Only the last frames see what follows the end.
    for row, length in zip(differ, longest["input_features_mask"].sum(-1).tolist(), strict=True):
        assert 0 < row[:length].sum() <= 2
        assert not row[: length - 2].any()
    with pytest.raises(ValueError, match="`audio_padding` must be"):
        processor(audio=recordings, audio_padding="shortest")


def test_audio_padding_and_language_tag_are_settings_of_the_processor(parts, processor, recordings, tmp_path):
    settings = {"audio_padding": "silence", "language_tag": "<{language}>"}
    set_up = LlmAsrProcessor(processor.feature_extractor, processor.tokenizer, **settings)
    set_up.save_pretrained(tmp_path)
    loaded = LlmAsrProcessor.from_pretrained(tmp_path)
    assert loaded(audio=recordings)["input_features_mask"].shape == (3, 300)
    request = {"language": "es", "identify_language": True, "transcription": "uno"}
    labels = loaded.apply_transcription_request(recordings[:1], **request)["labels"][0]
    assert loaded.tokenizer.decode(labels[labels != -100]) == "<Spanish>uno<|im_end|>"
    for tag in ("{language}", "no place", "{language} {language}\n", None):
        with pytest.raises(
            ValueError, match="`language_tag` must be a string with '{language}' once, and text after it"
        ):
            LlmAsrProcessor(processor.feature_extractor, processor.tokenizer, language_tag=tag)
    with pytest.raises(ValueError, match="`audio_padding='mirror'` is for Whisper's feature extractor"):
        LlmAsrProcessor.from_audio_text_pretrained(parts["parakeet"], parts["qwen2"], audio_padding="mirror")
    with pytest.raises(ValueError, match="`audio_padding='mirror'` needs the end of a recording"):
        LlmAsrProcessor(
            processor.feature_extractor, processor.tokenizer, audio_padding="mirror", log_mel_maximum="running"
        )


def test_labels_are_the_transcript_and_the_end_token(processor, recordings):
    transcripts = ["one two", "uno", ""]
    batch = processor.apply_transcription_request(recordings, transcription=transcripts)
    prompts = processor.apply_transcription_request(recordings)
    assert batch["target_lengths"].tolist() == [len(processor.tokenizer(text)["input_ids"]) for text in transcripts]
    for row, transcript in enumerate(transcripts):
        targets = batch["labels"][row][batch["labels"][row] != -100].tolist()
        assert targets == [*processor.tokenizer(transcript)["input_ids"], processor.tokenizer.eos_token_id]
        real = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        prompt = prompts["input_ids"][row][prompts["attention_mask"][row] == 1].tolist()
        assert real == prompt + targets


def test_languages(processor, recordings):
    def prompts(language):
        return processor.apply_transcription_request(recordings[:2], language=language, tokenize=False)

    assert prompts("es") == prompts("Spanish") == prompts(["es", "spanish"])
    assert prompts(None) == prompts([None, None])
    first, second = prompts(["fr", None])
    assert "in French." in first
    assert "speech." in second
    with pytest.raises(ValueError, match="(?s)klingon.*es"):
        prompts("klingon")
    with pytest.raises(ValueError, match=r"`language` has 3 entries for 2 recording\(s\)"):
        prompts(["es", "es", "es"])


def test_context_may_differ_by_recording_but_must_not_contain_audio_tokens(processor, recordings):
    first, second = processor.apply_transcription_request(recordings[:2], prompt=["a date", None], tokenize=False)
    assert "Context: a date" in first
    assert "Context" not in second
    with pytest.raises(ValueError, match="`prompt` must not contain the audio token"):
        processor.apply_transcription_request(recordings[:1], prompt="<|audio|>")


def test_transcripts_must_not_contain_audio_tokens(processor, recordings):
    with pytest.raises(ValueError, match="`transcription` must not contain the audio token"):
        processor.apply_transcription_request(recordings[:1], transcription="one <|audio|>")


def test_a_list_of_numbers_is_one_recording(processor, recordings):
    expected = processor(audio=recordings[0])
    for numbers in (recordings[0].tolist(), list(recordings[0])):
        assert torch.equal(processor(audio=numbers)["input_features"], expected["input_features"])


def test_languages_contexts_and_transcripts_are_strings(processor, recordings):
    with pytest.raises((TypeError, ValueError), match="`transcription`"):
        processor.apply_transcription_request(recordings[:2], transcription=["one", None])
    with pytest.raises(TypeError, match="`language` must be a string"):
        processor.apply_transcription_request(recordings[:1], language=3)
    with pytest.raises(TypeError, match="`prompt` must be a string"):
        processor.apply_transcription_request(recordings[:1], prompt=3)
    with pytest.raises(ValueError, match="klingon"):
        processor.apply_transcription_request(recordings[:2], language=["es", "klingon"])


def test_counts_must_match(processor, recordings):
    with pytest.raises(ValueError, match=r"`text` has 2 audio token\(s\) .*, but `audio` has 1 recording\(s\)"):
        processor(text="<|audio|><|audio|>", audio=recordings[:1])
    with pytest.raises(ValueError, match=r"`text` has 1 audio token\(s\) .*, but `audio` has 0"):
        processor(text="<|audio|>")
    with pytest.raises(ValueError, match=r"`transcription` has 1 entries for 2 prompt\(s\)"):
        processor.apply_transcription_request(recordings[:2], transcription="one")
    with pytest.raises(ValueError, match=r"2 prompt for 3 audio sample\(s\)"):
        processor.apply_transcription_request(recordings, prompt=["a date", None])
    with pytest.raises(ValueError, match="`audio` must contain at least one recording"):
        processor.apply_transcription_request([])
    with pytest.raises(ValueError, match="`audio` must contain at least one recording"):
        processor(audio=[])
    with pytest.raises(ValueError, match="Pass `text`, `audio`, or both"):
        processor()
    with pytest.raises(ValueError, match="`transcription` needs the `text`"):
        processor(audio=recordings, transcription=["one", "two", "three"])


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        (np.zeros(319, dtype="float32"), r"Recording 1: `audio` has 319 samples, less than one frame .*\(320\)"),
        (
            np.zeros(48001, dtype="float32"),
            r"Recording 1: `audio` lasts 3.0 s, but the limit of the speech encoder is 3.0 s; split",
        ),
        (np.zeros(0, dtype="float32"), "Recording 1: `audio` is empty"),
        (np.array([np.nan] * 400), "Recording 1: `audio` holds NaN"),
        (np.zeros((400, 2)), "Recording 1: `audio` must have shape"),
        ("nowhere.wav", "Recording 1: `audio` file 'nowhere.wav' does not exist"),
    ],
)
def test_a_bad_recording_is_named(processor, recordings, recording, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_transcription_request([recordings[0], recording])


def test_the_shortest_and_the_longest_recording_are_accepted(processor):
    for samples in (320, 48000):
        features = processor(audio=np.zeros(samples, dtype="float32"))
        assert features["input_features_mask"].sum() == samples // 160


def test_another_sampling_rate_is_refused_unless_declared(processor, recordings):
    with pytest.raises(ValueError, match="`sampling_rate` is 8000, but the speech encoder needs 16000"):
        processor(audio=recordings, sampling_rate=8000)
    converted = processor(audio={"array": recordings[0], "sampling_rate": 8000})
    assert converted["input_features_mask"].sum() == pytest.approx(2 * 40, abs=1)


def test_only_torch_tensors_are_returned(processor, recordings):
    with pytest.raises(ValueError, match="`return_tensors` must be 'pt'"):
        processor(audio=recordings, return_tensors="np")


def test_round_trip(processor, recordings, tmp_path):
    processor.transcription_template = "{{ audio_token }}{{ language or 'any' }}: {{ prompt }}"
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LlmAsrProcessor
    requests = {"language": ["es", None, "ru"], "prompt": "names", "transcription": ["uno", "dos", "tres"]}
    expected = processor.apply_transcription_request(recordings, **requests)
    reloaded = loaded.apply_transcription_request(recordings, **requests)
    assert expected.keys() == reloaded.keys()
    assert all(torch.equal(expected[name], reloaded[name]) for name in expected)
    assert loaded.max_audio_samples == processor.max_audio_samples


@pytest.mark.parametrize(("audio", "text"), [("whisper", "llama"), ("parakeet", "qwen2")])
def test_round_trip_of_the_options_of_composition(parts, recordings, tmp_path, audio, text):
    processor = LlmAsrProcessor.from_audio_text_pretrained(
        parts[audio],
        parts[text],
        audio_token="<|speech|>",
        chat_template="{% for message in messages %}[{{ message['content'] }}]{% endfor %}",
        transcription_template="{{ audio_token }}{{ language or 'any' }}",
    )
    (prompt,) = processor.apply_transcription_request(recordings[:1], language="it", tokenize=False)
    assert prompt == "[<|speech|>Italian]"
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.transcription_prompt_ids == processor.transcription_prompt_ids
    for name in ("audio_token", "audio_token_id", "samples_per_frame", "max_audio_samples", "sampling_rate"):
        assert getattr(loaded, name) == getattr(processor, name), name
    for name in ("pad_token_id", "eos_token_id", "padding_side"):
        assert getattr(loaded.tokenizer, name) == getattr(processor.tokenizer, name), name
    expected = processor.apply_transcription_request(recordings)
    reloaded = loaded.apply_transcription_request(recordings)
    assert all(torch.equal(expected[name], reloaded[name]) for name in expected)


def test_the_stored_prompt_equals_a_request_without_language(processor, recordings):
    request = processor.apply_transcription_request(recordings[0])
    assert request["input_ids"][0].tolist() == processor.transcription_prompt_ids


def test_decoding_omits_special_tokens(processor):
    ids = [*processor.tokenizer("uno dos")["input_ids"], processor.tokenizer.eos_token_id, processor.audio_token_id]
    assert processor.decode(ids) == "uno dos"
    assert processor.batch_decode(torch.tensor([ids, ids])) == ["uno dos", "uno dos"]
    assert processor.decode(ids, skip_special_tokens=False) == "uno dos<|im_end|><|audio|>"


def test_an_unsuitable_tokenizer_is_refused():
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match="`tokenizer` has no token '<|audio|>'"):
        LlmAsrProcessor(WhisperFeatureExtractor(), tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|audio|>"]})
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="`tokenizer` has no `eos_token`"):
        LlmAsrProcessor(WhisperFeatureExtractor(), tokenizer)
