"""Keywords in prompts: processor and pipeline."""

import pytest
from tiny_models import compose

from llm_asr import LlmAsrPipeline, LlmAsrProcessor
from llm_asr.processing.keywords import spread_keywords


# The default template of checkpoints that were saved before keywords.
OLD_TEMPLATE = (
    "{{ audio_token }}{% if identify_language %}Name the language and transcribe the speech"
    "{% else %}Transcribe the speech{% if language %} in {{ language }}{% endif %}{% endif %}."
    "{% if prompt %} Context: {{ prompt }}{% endif %}"
)


@pytest.fixture(scope="module")
def model_and_processor(parts):
    return compose(parts, "cif")


@pytest.fixture(scope="module")
def processor(model_and_processor):
    return model_and_processor[1]


@pytest.mark.parametrize(
    ("keywords", "count", "expected"),
    [
        (None, 2, [None, None]),
        ("Ana", 2, [["Ana"], ["Ana"]]),
        (["Ana", " San  José ", "Ana"], 2, [["Ana", "San José"]] * 2),
        ([], 2, [None, None]),
        ([["Ana"], None], 2, [["Ana"], None]),
        ([["Ana"], []], 2, [["Ana"], None]),
    ],
)
def test_keywords_of_each_recording(keywords, count, expected):
    assert spread_keywords(keywords, count) == expected


def test_a_list_of_keywords_is_interpreted_as_in_transformers():
    prepare = pytest.importorskip("transformers.processing_utils")
    if not hasattr(prepare, "prepare_keyword_inputs"):
        pytest.skip("This version of Transformers has no keywords.")
    for keywords in (None, "Ana", ["Ana", "Iñigo"], [["Ana"], ["Iñigo", "Qwen"]]):
        assert spread_keywords(keywords, 2) == prepare.prepare_keyword_inputs(keywords, 2)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ([["Ana"]], ValueError, r"`keywords` has 1 lists for 2 recording\(s\)"),
        (["Ana", " "], ValueError, "`keywords` has a blank entry"),
        (3, TypeError, "`keywords` must be a string, a list"),
        ([["Ana"], "Iñigo"], TypeError, "a list for each recording, got 'Iñigo'"),
        ([[1], ["Ana"]], TypeError, "`keywords` must be strings, got 1"),
    ],
)
def test_invalid_keywords_are_refused(keywords, error, message):
    with pytest.raises(error, match=message):
        spread_keywords(keywords, 2)


def test_the_prompt_lists_keywords_before_the_context(processor):
    (prompt,) = processor.apply_transcription_request(
        "a.wav", language="es", keywords=["Ana", "Qwen"], prompt="numbers", tokenize=False
    )
    assert "Transcribe the speech in Spanish. Keywords: Ana, Qwen. Context: numbers" in prompt
    without = processor.apply_transcription_request("a.wav", keywords=[], tokenize=False)
    assert without == processor.apply_transcription_request("a.wav", tokenize=False)
    with pytest.raises(ValueError, match=r"`keywords` must not contain the special token '<\|im_end\|>'"):
        processor.apply_transcription_request("a.wav", keywords=["Ana", "<|im_end|>"], tokenize=False)
    with pytest.raises(ValueError, match=r"`keywords` must not contain the audio token"):
        processor.apply_transcription_request("a.wav", keywords=["<|audio|>"], tokenize=False)


def test_old_checkpoints_load_and_refuse_keywords(parts, tmp_path, recordings):
    processor = LlmAsrProcessor.from_audio_text_pretrained(
        parts["whisper"], parts["qwen2"], transcription_template=OLD_TEMPLATE
    )
    processor.save_pretrained(tmp_path)
    loaded = LlmAsrProcessor.from_pretrained(tmp_path)
    assert loaded.transcription_template == OLD_TEMPLATE
    assert "Context: numbers" in loaded.apply_transcription_request("a", prompt="numbers", tokenize=False)[0]
    assert loaded.apply_transcription_request("a", keywords=[], tokenize=False)
    with pytest.raises(ValueError, match="`transcription_template` of this processor has no place for keywords"):
        loaded.apply_transcription_request("a", keywords=["Ana"], tokenize=False)


def test_the_template_with_keywords_is_saved(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = LlmAsrProcessor.from_pretrained(tmp_path)
    request = {"audio": "a", "keywords": ["Ana"], "tokenize": False}
    assert loaded.apply_transcription_request(**request) == processor.apply_transcription_request(**request)


def test_the_pipeline_lists_keywords_for_all_or_for_each_recording(model_and_processor, recordings, monkeypatch):
    model, processor = model_and_processor
    transcriber = LlmAsrPipeline(model, processor=processor)
    rendered = []
    render = processor._render_request

    def watch(*args, **kwargs):
        rendered.append(render(*args, **kwargs))
        return rendered[-1]

    monkeypatch.setattr(processor, "_render_request", watch)
    options = {"max_new_tokens": 4, "batch_size": 2}
    transcriber(recordings[:2], keywords=["Ana", "Qwen"], **options)
    assert ["Keywords: Ana, Qwen." in prompt for prompt in rendered] == [True, True]
    rendered.clear()
    for source in (recordings[:2], iter(recordings[:2])):
        found = list(transcriber(source, keywords=[["Ana"], None], **options))
        assert len(found) == 2
    assert ["Keywords: Ana." in prompt for prompt in rendered] == [True, False] * 2
    with pytest.raises(ValueError, match="`keywords` has 2 entries for one recording"):
        transcriber(recordings[0], keywords=[["Ana"], ["Qwen"]], **options)
    with pytest.raises(ValueError, match="`keywords` has 1 entries for 2 recordings"):
        transcriber(recordings[:2], keywords=[["Ana"]], **options)
    with pytest.raises(ValueError, match="`keywords` has no effect with `text`"):
        transcriber(recordings[0], text="one", keywords=["Ana"])


def test_keywords_change_the_input_of_the_model(model_and_processor, recordings):
    _, processor = model_and_processor
    batch = processor.apply_transcription_request(recordings[:2], keywords=[["Ana"], None])
    lengths = batch["attention_mask"].sum(-1).tolist()
    assert lengths[0] > lengths[1]
