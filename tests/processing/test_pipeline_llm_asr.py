"""`pipeline("automatic-speech-recognition")`, ours and the stock one."""

import numpy as np
import pytest
import soundfile
import soxr
import torch
from tiny_models import compose, make_tokenizer, make_whisper_tokenizer, save_tiny_whisper
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    pipeline,
)

from llm_asr import LlmAsrPipeline


TASK = "automatic-speech-recognition"
GENERATE = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = compose(parts, "moe_cif")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def transcriber(checkpoint):
    return pipeline(TASK, model=checkpoint)


@pytest.fixture
def expected(checkpoint, recordings):
    """Texts by the model and the processor alone."""
    model = AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    tokens = model.generate(**processor.apply_transcription_request(recordings), **GENERATE)
    return processor.batch_decode(tokens)


def texts(outputs):
    return [output["text"] for output in outputs]


def test_every_kind_of_input(transcriber, recordings, expected, tmp_path):
    assert type(transcriber) is LlmAsrPipeline
    file = tmp_path / "one.wav"
    soundfile.write(file, recordings[1], 16000, subtype="FLOAT")
    sources = [
        str(file),
        file.read_bytes(),
        recordings[1],
        {"raw": recordings[1], "sampling_rate": 16000},
        {"array": recordings[1], "sampling_rate": 16000},
        {"array": recordings[1], "sampling_rate": 16000, "path": "ignored"},
    ]
    for source in sources:
        assert transcriber(source, generate_kwargs=GENERATE)["text"] == expected[1]
    assert texts(transcriber(sources, generate_kwargs=GENERATE)) == [expected[1]] * len(sources)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_lists_generators_and_batches(transcriber, recordings, expected, batch_size):
    assert texts(transcriber(recordings, batch_size=batch_size, generate_kwargs=GENERATE)) == expected
    streamed = transcriber((one for one in recordings), batch_size=batch_size, generate_kwargs=GENERATE)
    assert texts(streamed) == expected


def test_other_sampling_rates_are_converted(transcriber, recordings):
    at_8_khz = soxr.resample(recordings[2], 16000, 8000)
    converted = transcriber({"raw": at_8_khz, "sampling_rate": 8000}, **GENERATE)
    assert converted == transcriber(soxr.resample(at_8_khz, 8000, 16000), **GENERATE)


def test_language_and_context_reach_the_prompt(transcriber, checkpoint, recordings):
    model = AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    request = processor.apply_transcription_request(recordings[0], language="es", prompt="numbers")
    (expected,) = processor.batch_decode(model.generate(**request, **GENERATE))
    assert transcriber(recordings[0], language="Spanish", prompt="numbers", **GENERATE)["text"] == expected
    assert transcriber(recordings[0], **GENERATE)["text"] != expected
    with pytest.raises(ValueError, match="klingon"):
        transcriber(recordings[0], language="klingon")


@pytest.mark.parametrize("audio", ["wav2vec2-bert", "parakeet"])
def test_encoders_without_a_window_batch_features_of_any_length(parts, recordings, audio):
    model, processor = compose(parts, "moe_cif", audio=audio)
    made = LlmAsrPipeline(model=model, processor=processor)
    tokens = model.generate(**processor.apply_transcription_request(recordings), **GENERATE)
    for batch_size in (1, 3):
        outputs = made(recordings, batch_size=batch_size, generate_kwargs=GENERATE)
        assert texts(outputs) == processor.batch_decode(tokens)


def test_half_precision(checkpoint, recordings):
    made = pipeline(TASK, model=checkpoint, dtype=torch.bfloat16)
    assert made.model.dtype == torch.bfloat16
    for output in made(recordings, batch_size=3, return_timestamps="word", generate_kwargs=GENERATE):
        assert [chunk["text"] for chunk in output["chunks"]] == output["text"].split()


def test_a_model_in_memory_needs_its_processor(parts, recordings):
    model, processor = compose(parts, "moe_cif")
    model.config._name_or_path = ""
    model.name_or_path = ""
    made = pipeline(
        TASK,
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        processor=processor,
    )
    assert type(made) is LlmAsrPipeline
    tokens = model.generate(**processor.apply_transcription_request(recordings), **GENERATE)
    assert texts(made(recordings, generate_kwargs=GENERATE)) == processor.batch_decode(tokens)
    with pytest.raises(ValueError, match="`processor` must be passed"):
        LlmAsrPipeline(model=model)


def test_whatever_the_caller_wants_of_generate_a_text_comes_back(transcriber, recordings, expected):
    options = {"return_dict_in_generate": True, "output_scores": True, **GENERATE}
    assert transcriber(recordings[0], generate_kwargs=options)["text"] == expected[0]


def test_decoding_is_greedy_unless_told(transcriber, recordings, expected):
    assert transcriber(recordings[0], **GENERATE)["text"] == expected[0]
    assert transcriber(recordings[0], num_beams=3, **GENERATE)["text"] != expected[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_length_s": 2}, "`chunk_length_s` is not supported"),
        ({"return_timestamps": "char"}, "`return_timestamps` must be 'word', True or False, got 'char'"),
        ({"stride_length_s": 1}, "`stride_length_s` is not supported"),
        ({"decoder_kwargs": {}}, "`decoder_kwargs` is not supported"),
        ({"num_return_sequences": 2, "num_beams": 2}, "`num_return_sequences` must be 1"),
        (
            {"generation_config": GenerationConfig(num_return_sequences=2, num_beams=2, max_new_tokens=8)},
            "`num_return_sequences` must be 1",
        ),
    ],
)
def test_what_is_not_there_is_said(transcriber, recordings, options, message):
    with pytest.raises(ValueError, match=message):
        transcriber(recordings[0], **options)


def test_timestamps_of_words_and_segments(transcriber, recordings, expected):
    for batch_size in (1, 3):
        options = {"batch_size": batch_size, "generate_kwargs": GENERATE}
        for output, recording, text in zip(
            transcriber(recordings, return_timestamps="word", **options), recordings, expected, strict=True
        ):
            assert output["text"] == text
            assert [chunk["text"] for chunk in output["chunks"]] == text.split()
            times = [time for chunk in output["chunks"] for time in chunk["timestamp"]]
            assert times == sorted(times)
            # A frame of the projector spans 40 ms.
            assert 0 <= times[0] <= times[-1] <= len(recording) / 16000 + 0.04
    segments = transcriber(recordings[2], return_timestamps=True, generate_kwargs=GENERATE)["chunks"]
    assert " ".join(segment["text"] for segment in segments).split() == expected[2].split()


def test_timestamps_need_cif(parts, recordings):
    model, processor = compose(parts, "conv")
    made = LlmAsrPipeline(model=model, processor=processor)
    with pytest.raises(ValueError, match=r"needs a projector with CIF .*, and this model's is 'conv'"):
        made(recordings[0], return_timestamps="word")


def test_bad_recordings_are_refused(transcriber):
    with pytest.raises(ValueError, match=r"lasts 4.0 s, and the speech encoder takes 3.0 s"):
        transcriber(np.zeros(64000, dtype="float32"))
    with pytest.raises(ValueError, match="'nowhere.wav' does not exist"):
        transcriber("nowhere.wav")


def test_the_stock_pipeline_transcribes_too(checkpoint, recordings, expected):
    stock = pipeline(TASK, model=checkpoint, pipeline_class=AutomaticSpeechRecognitionPipeline)
    assert stock.type == "seq2seq"
    assert stock(recordings[0], generate_kwargs=GENERATE)["text"].strip() == expected[0]
    batched = stock(recordings, batch_size=3, generate_kwargs=GENERATE)
    assert [text.strip() for text in texts(batched)] == expected


def test_other_models_keep_the_stock_pipeline(recordings, tmp_path):
    save_tiny_whisper(str(tmp_path / "whisper"))
    make_whisper_tokenizer().save_pretrained(tmp_path / "whisper")
    whisper = pipeline(TASK, model=str(tmp_path / "whisper"))
    assert type(whisper) is AutomaticSpeechRecognitionPipeline
    assert isinstance(whisper(recordings[0], generate_kwargs=GENERATE)["text"], str)

    config = Wav2Vec2Config(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path / "ctc")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "ctc")
    make_tokenizer().save_pretrained(tmp_path / "ctc")
    ctc = pipeline(TASK, model=str(tmp_path / "ctc"))
    assert type(ctc) is AutomaticSpeechRecognitionPipeline
    assert ctc.type == "ctc"
    assert isinstance(ctc(recordings[0])["text"], str)
