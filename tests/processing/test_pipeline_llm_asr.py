"""`pipeline("automatic-speech-recognition")`, ours and the stock one."""

import http.server
import io
import threading

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
    LogitsProcessor,
    LogitsProcessorList,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    pipeline,
)
from transformers.utils import logging

from llm_asr import LlmAsrPipeline
from llm_asr.processing.segmentation import split_at_silences


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
    """Texts from the model and the processor without a pipeline."""
    model = AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    request = processor.apply_transcription_request(recordings, identify_language=True)
    return processor.batch_decode(model.generate(**request, **GENERATE))


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


def test_a_recording_at_an_address_is_fetched_once(transcriber, recordings, expected):
    encoded = io.BytesIO()
    soundfile.write(encoded, recordings[1], 16000, subtype="FLOAT", format="WAV")
    fetched = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            fetched.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded.getvalue())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/one.wav"
        assert transcriber(address, generate_kwargs=GENERATE)["text"] == expected[1]
        server.shutdown()
    assert fetched == ["/one.wav"]


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
    request = processor.apply_transcription_request(recordings, identify_language=True)
    tokens = model.generate(**request, **GENERATE)
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
    request = processor.apply_transcription_request(recordings, identify_language=True)
    tokens = model.generate(**request, **GENERATE)
    assert texts(made(recordings, generate_kwargs=GENERATE)) == processor.batch_decode(tokens)
    with pytest.raises(ValueError, match="`processor` must be passed"):
        LlmAsrPipeline(model=model)


def test_a_model_and_its_processor_make_a_pipeline(parts, recordings, monkeypatch):
    """There must be no warning about lengths that the caller has not set."""
    model, processor = compose(parts, "moe_cif")
    heard = []
    for module in ("transformers.generation.utils", "transformers.pipelines.base"):
        for level in ("warning", "warning_once"):
            monkeypatch.setattr(logging.get_logger(module), level, lambda *args: heard.append(args))
    made = pipeline(TASK, model=model, processor=processor)
    assert type(made) is LlmAsrPipeline
    request = processor.apply_transcription_request(recordings, identify_language=True)
    assert texts(made(recordings)) == processor.batch_decode(model.generate(**request))
    assert not heard


def test_threads_may_share_a_pipeline(checkpoint, recordings):
    """A temporary change by one call must not affect another call."""
    transcriber = pipeline(TASK, model=checkpoint)
    transcriber.model.generation_config.max_new_tokens_per_second = None
    before = dict(vars(transcriber))
    seen = []
    generate = transcriber.model.generate
    transcriber.model.generate = lambda **kwargs: (
        seen.append({name: value is before[name] for name, value in vars(transcriber).items() if name in before}),
        generate(**kwargs),
    )[1]
    transcriber(recordings[0], generate_kwargs={"max_new_tokens_per_second": 10.0, **GENERATE})
    assert seen
    assert all(unchanged for state in seen for name, unchanged in state.items() if name != "call_count")


def test_every_option_of_generate_gives_a_text(transcriber, recordings, expected):
    options = {"return_dict_in_generate": True, "output_scores": True, **GENERATE}
    assert transcriber(recordings[0], generate_kwargs=options)["text"] == expected[0]


def test_the_token_limit_follows_the_duration_unless_the_caller_sets_one(checkpoint, recordings):
    transcriber = pipeline(TASK, model=checkpoint)
    config = transcriber.model.generation_config
    # Suppress the end tokens, so that only the limit ends a transcript.
    config.suppress_tokens = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    request = transcriber.processor.apply_transcription_request(recordings[0], identify_language=True)
    limited = transcriber.model.generate(**request)
    assert limited.shape[1] < 200
    assert transcriber(recordings[0])["text"] == transcriber.processor.batch_decode(limited)[0]
    longer = transcriber.model.generate(**request, max_new_tokens=limited.shape[1] + 50)
    asked = transcriber(recordings[0], generate_kwargs={"max_new_tokens": longer.shape[1]})["text"]
    assert asked == transcriber.processor.batch_decode(longer)[0] != transcriber.processor.batch_decode(limited)[0]
    unlimited = transcriber(recordings[0], generate_kwargs={"max_new_tokens_per_second": None})["text"]
    assert len(unlimited) > len(asked)


def test_decoding_is_greedy_by_default(transcriber, recordings, expected):
    assert texts(transcriber(recordings, **GENERATE)) == expected
    assert texts(transcriber(recordings, num_beams=3, **GENERATE)) != expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_length_s": 4}, "`chunk_length_s` is 4, but the limit of the speech encoder is 3 s"),
        ({"return_timestamps": "word", "return_confidence": True}, "`return_confidence` applies to segments"),
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
def test_unsupported_options_are_refused(transcriber, recordings, options, message):
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
            # A frame of the projector lasts 40 ms.
            assert 0 <= times[0] <= times[-1] <= len(recording) / 16000 + 0.04
    segments = transcriber(recordings[2], return_timestamps=True, generate_kwargs=GENERATE)["chunks"]
    assert " ".join(segment["text"] for segment in segments).split() == expected[2].split()


def test_timestamps_of_words_need_cif(parts, recordings):
    model, processor = compose(parts, "conv")
    made = LlmAsrPipeline(model=model, processor=processor)
    (chunk,) = made(recordings[1], return_timestamps=True)["chunks"]
    assert chunk["timestamp"] == (0.0, 1.3)
    with pytest.raises(ValueError, match=r"needs a projector with CIF .*, but this model's projector is 'conv'"):
        made(recordings[0], return_timestamps="word")


def test_bad_recordings_are_refused(transcriber):
    with pytest.raises(ValueError, match="'nowhere.wav' does not exist"):
        transcriber("nowhere.wav")


@pytest.fixture(scope="module")
def long_recording():
    """A recording of 40 s with bursts of noise of 0.5 to 2.5 s between pauses of 0.8 s, and the times of the bursts."""
    generator = np.random.default_rng(0)
    pieces, spans, position = [], [], 0
    while position < 40 * 16000:
        pieces.append(np.zeros(int(0.8 * 16000), dtype="float32"))
        position += len(pieces[-1])
        pieces.append((0.2 * generator.standard_normal(generator.integers(8000, 40000))).astype("float32"))
        spans.append((position, position + len(pieces[-1])))
        position += len(pieces[-1])
    return np.concatenate(pieces), spans


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_long_recording_has_the_texts_of_its_segments(transcriber, long_recording, batch_size, tmp_path):
    waveform, spans = long_recording
    options = {"batch_size": batch_size, "return_timestamps": True, "generate_kwargs": GENERATE}
    result = transcriber(waveform, **options)
    starts = [start / 16000 for start, _ in spans]
    segments = list(split_at_silences([waveform], 16000, max_segment_s=3.0))
    assert len(segments) == len(spans)
    alone = [transcriber(segment.waveform, **options) for segment in segments]
    assert result["text"] == " ".join(text for text in texts(alone) if text)
    expected = [
        (chunk["text"], [segment.start + time for time in chunk["timestamp"]])
        for segment, output in zip(segments, alone, strict=True)
        for chunk in output["chunks"]
    ]
    assert [chunk["text"] for chunk in result["chunks"]] == [text for text, _ in expected]
    for chunk, (_, times) in zip(result["chunks"], expected, strict=True):
        assert chunk["timestamp"] == pytest.approx(times)
        assert any(start - 0.3 <= chunk["timestamp"][0] for start in starts)
    file = tmp_path / "long.flac"
    soundfile.write(file, waveform, 16000, subtype="PCM_24")
    streamed = transcriber([str(file), str(file)], **options)
    assert [output["text"] for output in streamed] == [result["text"]] * 2


def test_a_long_recording_at_another_rate_and_with_a_progress_bar(transcriber, long_recording, tmp_path, capsys):
    waveform, spans = long_recording
    file = tmp_path / "long.wav"
    soundfile.write(file, soxr.resample(waveform, 16000, 44100), 44100)
    result = transcriber(str(file), return_timestamps=True, progress_bar=True, generate_kwargs=GENERATE)
    assert "100%" in capsys.readouterr().err
    assert result["chunks"][-1]["timestamp"][1] == pytest.approx(spans[-1][1] / 16000, abs=0.3)


def test_shorter_segments_on_request(transcriber, recordings, long_recording):
    waveform, _ = long_recording
    options = {"return_timestamps": True, "generate_kwargs": GENERATE}
    chunks = transcriber(waveform, chunk_length_s=1.0, **options)["chunks"]
    assert all(end - start <= 1.0 for start, end in (chunk["timestamp"] for chunk in chunks))
    assert transcriber(recordings[2], chunk_length_s=1.0, vad="energy", min_silence_s=0.2, **options)["chunks"]
    with pytest.raises(ValueError, match="`vad` must be one of"):
        transcriber(waveform, vad="ears")


def test_an_hour_of_silence_has_no_text(transcriber):
    silence = {"raw": np.zeros(20 * 16000, dtype="float32"), "sampling_rate": 16000}
    result = transcriber(silence, return_timestamps=True, generate_kwargs=GENERATE)
    assert result == {"text": "", "language": None, "languages": [], "chunks": []}
    assert transcriber(silence, language="es", generate_kwargs=GENERATE) == {
        "text": "",
        "language": "Spanish",
        "languages": ["Spanish"],
    }


def test_the_language_is_given_or_reported(transcriber, recordings, monkeypatch):
    assert transcriber(recordings[0], language="es-MX", **GENERATE)["language"] == "Spanish"
    assert transcriber(recordings[0], **GENERATE)["language"] is None
    # A random model does not name a language, so force the answer of a trained one.
    processor = transcriber.processor
    answer = [*processor._tokenize("French\n"), *processor._tokenize("un deux"), processor.tokenizer.eos_token_id]

    class Forced(LogitsProcessor):
        def __call__(self, input_ids, scores):
            forced = torch.full_like(scores, -torch.inf)
            forced[:, answer[min(input_ids.shape[1], len(answer) - 1)]] = 0.0
            return forced

    options = {"logits_processor": LogitsProcessorList([Forced()]), "max_new_tokens": 40}
    result = transcriber(recordings, batch_size=2, return_timestamps=True, generate_kwargs=options)
    for output in result:
        assert (output["text"], output["language"]) == ("un deux", "French")
        assert all(chunk["language"] == "French" for chunk in output["chunks"])
        assert " ".join(chunk["text"] for chunk in output["chunks"]) == "un deux"


def test_confidence_on_request(transcriber, recordings):
    for output in transcriber(recordings, batch_size=3, return_confidence=True, generate_kwargs=GENERATE):
        for chunk in output["chunks"]:
            assert chunk["avg_logprob"] < 0
            assert 0 <= chunk["no_speech_prob"] <= 1
    fallback = {"temperature": [0.0, 0.5], "logprob_threshold": -1e9, **GENERATE}
    assert transcriber(recordings[0], generate_kwargs=fallback) == transcriber(recordings[0], generate_kwargs=GENERATE)


def test_the_stock_pipeline_transcribes_too(checkpoint, recordings):
    stock = pipeline(TASK, model=checkpoint, pipeline_class=AutomaticSpeechRecognitionPipeline)
    assert stock.type == "seq2seq"
    tokens = stock.model.generate(**AutoProcessor.from_pretrained(checkpoint)(audio=recordings), **GENERATE)
    expected = stock.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    expected = [text.strip() for text in expected]
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
