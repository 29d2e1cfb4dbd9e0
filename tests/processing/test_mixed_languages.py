"""Recordings in which several languages are spoken."""

import pytest
from tiny_models import compose

from llm_asr import LlmAsrPipeline, LlmAsrProcessor
from llm_asr.processing.languages import LANGUAGE_CODE_TO_NAME
from llm_asr.processing.pipeline_llm_asr import join_pieces
from llm_asr.serving.text_stream import TextStream


@pytest.fixture(scope="module")
def model_and_processor(parts):
    return compose(parts, "conv")


@pytest.fixture(scope="module")
def processor(model_and_processor):
    return model_and_processor[1]


def answer(processor, text):
    return [*processor.tokenizer(text, add_special_tokens=False)["input_ids"], processor.tokenizer.eos_token_id]


def test_several_names(processor):
    assert processor.language_name("es,en") == "Spanish, English"
    assert processor.language_name(" Spanish , en-US,es") == "Spanish, English"
    with pytest.raises(ValueError, match="`language` 'xx' is not among"):
        processor.language_name("es,xx")
    (prompt,) = processor.apply_transcription_request("a", language="es,en", tokenize=False)
    assert "Transcribe the speech in Spanish, English." in prompt
    with pytest.raises(ValueError, match="`target_language` must be one language, got 'es,en'"):
        processor.apply_transcription_request("a", task="translate", target_language="es,en", tokenize=False)


def test_an_answer_names_several_languages(processor, recordings):
    batch = processor.apply_transcription_request(
        recordings[1], language="es,en", identify_language=True, transcription="uno dos one"
    )
    target = batch["labels"][batch["labels"] != -100]
    decoded = processor.decode(target, return_language=True)
    assert decoded == {"text": "uno dos one", "language": "Spanish", "languages": ["Spanish", "English"]}
    assert batch["target_lengths"].tolist() == [len(processor.tokenizer("uno dos one")["input_ids"])]


@pytest.mark.parametrize("text", ["Spanish, uno\n dos", "Spanish,English\nuno", "uno, Spanish\n", "Spanish, \nuno"])
def test_text_that_names_no_languages(processor, text):
    decoded = processor.decode(answer(processor, text), return_language=True)
    assert (decoded["language"], decoded["languages"]) == (None, [])
    assert decoded["text"] == text.strip()


def test_a_name_with_a_comma_is_one_language(parts):
    languages = {**LANGUAGE_CODE_TO_NAME, "xx": "Chinese, Cantonese"}
    processor = LlmAsrProcessor.from_audio_text_pretrained(parts["whisper"], parts["qwen2"], languages=languages)
    assert processor.language_name("xx") == processor.language_name("chinese, cantonese") == "Chinese, Cantonese"
    decoded = processor.decode(answer(processor, "Chinese, Cantonese\nuno"), return_language=True)
    assert (decoded["languages"], decoded["text"]) == (["Chinese, Cantonese"], "uno")


def test_recordings_have_the_language_of_most_segments_and_a_list(processor):
    texts = ["Spanish, English\nuno one", "English\ntwo", "English, French\nthree trois"]
    pieces = [
        {"has_speech": True, "start": float(start), "end": float(end), "tokens": [answer(processor, text)]}
        for text, start, end in zip(texts, (0, 4, 6), (4, 6, 9), strict=True)
    ]
    result = join_pieces(pieces, processor, 0.04, return_timestamps=True)
    assert result["language"] == "English"
    assert result["languages"] == ["English", "Spanish", "French"]
    assert [chunk["language"] for chunk in result["chunks"]] == ["Spanish", "English", "English"]
    assert result["chunks"][2]["languages"] == ["English", "French"]
    told = join_pieces(pieces, processor, 0.04, language="French, German")
    assert (told["language"], told["languages"]) == ("French", ["French", "German"])


def test_a_stream_holds_the_names_back(processor):
    stream, sent = TextStream(processor), ""
    for token in answer(processor, "Spanish, English\nuno"):
        sent += stream.add([token])
    assert sent + stream.end_segment() == "uno"


def test_the_pipeline_takes_several_languages(model_and_processor, recordings):
    model, processor = model_and_processor
    request = processor.apply_transcription_request(recordings[1], language="es,en")
    (expected,) = processor.batch_decode(model.generate(**request, max_new_tokens=4))
    found = LlmAsrPipeline(model, processor=processor)(recordings[1], language="es,en", max_new_tokens=4)
    assert found == {"text": expected, "language": "Spanish", "languages": ["Spanish", "English"]}
