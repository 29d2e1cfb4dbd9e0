"""Translation in prompts, in the pipeline and in training batches."""

import json

import pytest
import soundfile
from tiny_models import compose
from transformers import pipeline

from llm_asr import LlmAsrPipeline, LlmAsrProcessor
from llm_asr.cli import main
from llm_asr.processing.tasks import spread_tasks


@pytest.fixture(scope="module")
def model_and_processor(parts):
    return compose(parts, "cif", draft_head=True)


@pytest.fixture(scope="module")
def processor(model_and_processor):
    return model_and_processor[1]


@pytest.fixture(scope="module")
def transcriber(model_and_processor):
    model, processor = model_and_processor
    return LlmAsrPipeline(model, processor=processor)


def test_the_prompt_names_both_languages(processor):
    prompts = processor.apply_transcription_request(
        ["a", "b", "c"],
        task=["translate", "transcribe", "translate"],
        language=["es", "es", None],
        target_language=["en", None, "German"],
        keywords=["Ana"],
        tokenize=False,
    )
    assert "Translate the speech in Spanish into English. Keywords: Ana." in prompts[0]
    assert "Transcribe the speech in Spanish." in prompts[1]
    assert "Translate the speech into German." in prompts[2]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"task": "summarise"}, "`task` must be 'transcribe' or 'translate', got 'summarise'"),
        ({"task": "translate"}, "`task='translate'` needs `target_language`"),
        ({"task": "translate", "target_language": "auto"}, "`task='translate'` needs `target_language`"),
        ({"target_language": "en"}, "`target_language` 'en' is for translations"),
        ({"task": "translate", "target_language": "xx"}, "`target_language` 'xx' is not among"),
        (
            {"task": "translate", "target_language": "en", "identify_language": True},
            "`identify_language` is for transcr",
        ),
        (
            {"task": "translate", "target_language": "en", "transcription": "uno"},
            "`translation` must be passed with `transcription`",
        ),
        (
            {"translation": "one", "transcription": "uno"},
            "`translation` must be a string for each recording whose `task`",
        ),
        ({"task": ["translate"] * 2, "target_language": "en"}, "task"),
    ],
)
def test_requests_that_contradict_themselves(processor, recordings, request_, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_transcription_request(recordings[0], **request_)


def test_tasks_of_each_recording():
    assert spread_tasks("translate", "en", 2) == ["en", "en"]
    assert spread_tasks(["transcribe", "translate"], [None, "es"], 2) == [None, "es"]


def test_old_templates_have_no_place_for_translations(parts):
    template = "{{ audio_token }}Transcribe the speech{% if language %} in {{ language }}{% endif %}."
    processor = LlmAsrProcessor.from_audio_text_pretrained(
        parts["whisper"], parts["qwen2"], transcription_template=template
    )
    with pytest.raises(ValueError, match="has no place for translations"):
        processor.apply_transcription_request("a", task="translate", target_language="en", tokenize=False)


def test_the_pipeline_translates_without_identifying_a_language(transcriber, recordings):
    model, processor = transcriber.model, transcriber.processor
    request = processor.apply_transcription_request(recordings[2], task="translate", target_language="en")
    (expected,) = processor.batch_decode(model.generate(**request, max_new_tokens=8))
    options = {"task": "translate", "target_language": "English", "max_new_tokens": 8}
    found = transcriber(recordings[2], **options)
    assert found == {"text": expected, "language": None, "languages": []}
    timed = transcriber(recordings[2], return_timestamps=True, language="es", **options)
    assert timed["language"] == "Spanish"
    # The whole segment is one part, because CIF's weights are of the transcript.
    assert [chunk["timestamp"] for chunk in timed["chunks"]] == [(0.0, 2.1)]


def test_translations_are_not_drafted(transcriber, recordings, monkeypatch):
    drafted = []
    draft = transcriber.model.draft
    monkeypatch.setattr(transcriber.model, "draft", lambda *given: drafted.append(given) or draft(*given))
    transcriber(recordings[2], max_new_tokens=2)
    assert len(drafted) == 1
    transcriber(recordings[2], task="translate", target_language="en", max_new_tokens=2)
    assert len(drafted) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_timestamps": "word"}, "`return_timestamps='word'` is not possible for translations: CIF knows"),
        ({"generate_kwargs": {"use_draft": True}}, "`use_draft` is not possible for translations: drafts are of the"),
        ({"draft_only": True}, "`draft_only` is not possible for translations"),
        ({"target_language": None}, "`task='translate'` needs `target_language`"),
        ({"text": "one"}, "`task` has no effect with `text`"),
    ],
)
def test_what_a_translation_cannot_have(transcriber, recordings, options, message):
    with pytest.raises(ValueError, match=message):
        transcriber(recordings[0], **{"task": "translate", "target_language": "en", **options})


def test_the_command_translates(model_and_processor, recordings, tmp_path, capsys):
    folder, file = str(tmp_path / "model"), tmp_path / "one.wav"
    for part in model_and_processor:
        part.save_pretrained(folder)
    soundfile.write(file, recordings[2], 16000)
    command = ["transcribe", str(file), "--model", folder, "--task", "translate"]
    assert main(command) == 2
    assert "needs `target_language`" in capsys.readouterr().err
    command += ["--target-language", "en"]
    assert main([*command, "--timestamps", "word"]) == 2
    assert "the words of a translation are not spoken" in capsys.readouterr().err
    assert main([*command, "--format", "json"]) == 0
    loaded = pipeline("automatic-speech-recognition", model=folder)
    expected = loaded(str(file), task="translate", target_language="en")
    assert json.loads(capsys.readouterr().out)["text"] == expected["text"]
