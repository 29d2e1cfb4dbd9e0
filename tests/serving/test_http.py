"""Real requests over loopback to a server with a tiny model."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from containers import encode_container
from tiny_models import compose
from transformers import pipeline


HOW = 'pip install "llm-asr[serve]" httpx'
pytest.importorskip("httpx", reason=HOW)
pytest.importorskip("prometheus_client", reason=HOW)
pytest.importorskip("python_multipart", reason=HOW)
pytest.importorskip("starlette", reason=HOW)
pytest.importorskip("uvicorn", reason=HOW)

import httpx  # noqa: E402
from live_server import free_port, serve, wait_until  # noqa: E402


ROUTE = "/v1/audio/transcriptions"


def save(parts, folder, projector_type):
    model, processor = compose(parts, projector_type)
    model.generation_config.max_new_tokens = 12
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    return save(parts, tmp_path_factory.mktemp("checkpoint"), "moe_cif")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def address(checkpoint, cache):
    with serve(checkpoint, cache, "--engine", "transformers") as address:
        yield address


@pytest.fixture(scope="module")
def transcriber(checkpoint):
    return pipeline("automatic-speech-recognition", model=checkpoint)


def encode(waveform, rate=16000, file_format="WAV"):
    contents = io.BytesIO()
    soundfile.write(contents, waveform, rate, format=file_format)
    return contents.getvalue()


@pytest.fixture
def speech(recordings):
    """Audio files of 0.4, 1.3 and 2.1 seconds."""
    return [encode(recording) for recording in recordings]


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16000 * seconds))).astype("float32")


@pytest.fixture(scope="module")
def long_recording():
    """A FLAC file at another sampling rate with 40 segments: bursts of 0.5 to 2 seconds between pauses of 0.7 s."""
    pieces = []
    for number in range(40):
        pieces += [noise(0.5 + number % 4 / 2, number), np.zeros(11200, "float32")]
    return encode(np.concatenate(pieces), 22050, "FLAC")


def post(address, contents, name="speech.wav", data=None, path="transcriptions", **kwargs):
    route = ROUTE.replace("transcriptions", path)
    return httpx.post(address + route, files={"file": (name, contents)}, data=data or {}, timeout=60, **kwargs)


def metric(address, name):
    rows = dict(
        row.rsplit(" ", 1) for row in httpx.get(address + "/metrics").text.splitlines() if not row.startswith("#")
    )
    return float(rows.get(f"llm_asr_{name}", 0.0))


def events_of(text):
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


def check_error(response, status, message, param=None, code=None):
    assert response.status_code == status, response.text
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert (error["param"], error["code"]) == (param, code)
    return error


def test_responses_equal_the_output_of_the_pipeline(address, transcriber, speech, long_recording):
    for contents in (*speech, long_recording):
        for options in ({}, {"language": "es"}, {"prompt": "cuatro cinco"}, {"keywords": ["Ana", "uno dos"]}):
            expected = transcriber(contents, **options)["text"]
            assert expected
            fields = {f"{name}[]" if name == "keywords" else name: value for name, value in options.items()}
            response = post(address, contents, data={"model": "tiny", **fields})
            assert response.status_code == 200
            assert response.json()["text"] == expected


def test_translations(address, transcriber, speech, long_recording):
    for fields, target in (({}, "English"), ({"target_language": "de", "language": "es"}, "German")):
        options = {"task": "translate", "target_language": target, "language": fields.get("language")}
        for contents in (speech[0], long_recording):
            expected = transcriber(contents, return_timestamps=True, **options)
            response = post(address, contents, data=fields, path="translations")
            assert response.json()["text"] == expected["text"] != transcriber(contents)["text"]
            verbose = post(
                address, contents, data={**fields, "response_format": "verbose_json"}, path="translations"
            ).json()
            assert (verbose["task"], verbose["language"]) == ("translate", target.lower())
            times = [(segment["start"], segment["end"]) for segment in verbose["segments"]]
            assert times == [chunk["timestamp"] for chunk in expected["chunks"]]
    words = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    response = post(address, speech[0], data=words, path="translations")
    check_error(response, 400, "The words of a translation are not spoken", "timestamp_granularities")
    response = post(address, speech[0], data={"target_language": "xx"}, path="translations")
    check_error(response, 400, "'xx' is not among", "target_language")
    response = post(address, speech[0], data={"target_language": "en"})
    check_error(response, 400, "`target_language` is not supported", "target_language")


def test_formats_of_phones_and_browsers_are_read(address, transcriber):
    for container, codec in (("ipod", "aac"), ("webm", "libopus")):
        contents = encode_container(noise(2.0), 16000, container, codec)
        response = post(address, contents, data={"response_format": "verbose_json"})
        assert response.status_code == 200
        assert response.json()["text"] == transcriber(contents)["text"]
        assert 1.9 < response.json()["duration"] < 2.1


def test_concurrent_requests_get_the_same_texts_as_single_requests(address, transcriber):
    files = [encode(noise(0.3 + number / 8, number)) for number in range(16)]
    expected = [transcriber(contents)["text"] for contents in files]
    assert len(set(expected)) > 4
    before = metric(address, "front_end_batch_count")
    with ThreadPoolExecutor(16) as clients:
        found = [response.json()["text"] for response in clients.map(lambda file: post(address, file), files)]
    assert found == expected
    assert metric(address, "front_end_batch_count") - before < 16


def test_formats(address, transcriber, long_recording):
    expected = transcriber(long_recording, return_timestamps=True, return_confidence=True)
    chunks = expected["chunks"]

    def get(**data):
        return post(address, long_recording, data=data)

    assert get(response_format="text").text == expected["text"] + "\n"
    verbose = get(response_format="verbose_json").json()
    assert verbose["text"] == expected["text"]
    assert verbose["language"] == (expected["language"] or "unknown").lower()
    info = soundfile.info(io.BytesIO(long_recording))
    assert verbose["duration"] == pytest.approx(info.frames / info.samplerate, abs=0.001)
    assert "words" not in verbose
    assert [part["id"] for part in verbose["segments"]] == list(range(len(chunks)))
    for part, chunk in zip(verbose["segments"], chunks, strict=True):
        assert part["text"] == chunk["text"]
        assert (part["start"], part["end"]) == pytest.approx(chunk["timestamp"], abs=0.001)
        assert part["avg_logprob"] == pytest.approx(chunk["avg_logprob"], abs=1e-3)
        assert part["no_speech_prob"] == pytest.approx(chunk["no_speech_prob"], abs=1e-4)
    for name in ("srt", "vtt"):
        response = get(response_format=name)
        assert response.text.count(" --> ") == sum(bool(chunk["text"].strip()) for chunk in chunks)
        assert response.text.startswith("WEBVTT\n" if name == "vtt" else "1\n")


def test_word_times(address, transcriber, speech):
    expected = transcriber(speech[2], return_timestamps="word")["chunks"]
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    body = post(address, speech[2], data=fields).json()
    assert "segments" not in body
    assert [word["word"] for word in body["words"]] == [chunk["text"] for chunk in expected]
    assert [word["start"] for word in body["words"]] == pytest.approx(
        [chunk["timestamp"][0] for chunk in expected], abs=0.001
    )
    both = post(address, speech[2], data={**fields, "timestamp_granularities[]": ["word", "segment"]}).json()
    assert both["words"] == body["words"]
    assert both["segments"]


def test_stream(address, transcriber, long_recording):
    response = post(address, long_recording, data={"stream": "true"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *deltas, done = events_of(response.text)
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert len(deltas) > 20
    assert done["type"] == "transcript.text.done"
    assert done["text"] == transcriber(long_recording)["text"] == "".join(event["delta"] for event in deltas)
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 40


def test_openai_client(address, transcriber, speech):
    openai = pytest.importorskip("openai", reason="needs the openai client: pip install openai")
    client = openai.OpenAI(base_url=address + "/v1", api_key="none", max_retries=0)
    expected = transcriber(speech[1], return_timestamps=True)
    assert [model.id for model in client.models.list()] == ["tiny", "whisper-1"]
    assert client.models.retrieve("tiny").id == "tiny"

    def create(**kwargs):
        return client.audio.transcriptions.create(file=("speech.wav", speech[1]), model="whisper-1", **kwargs)

    assert create().text == expected["text"]
    assert create(response_format="text") == expected["text"] + "\n"
    verbose = create(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert verbose.segments[0].text == expected["chunks"][0]["text"]
    assert verbose.words[0].end > verbose.words[0].start >= 0
    assert verbose.usage.seconds == verbose.duration == pytest.approx(1.3)
    events = list(create(stream=True))
    assert events[-1].text == expected["text"] == "".join(event.delta for event in events[:-1])
    with pytest.raises(openai.BadRequestError) as refused:
        create(language="klingon")
    assert refused.value.param == "language"
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        client.audio.transcriptions.create(file=("speech.wav", speech[1]), model="large")
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.transcriptions.create(file=("speech.wav", b"RIFF nonsense"), model="tiny")
    assert refused.value.code == "invalid_audio"


def test_an_unknown_language_is_refused(address, speech):
    response = post(address, speech[0], data={"language": "xx"})
    check_error(response, 400, "'xx' is not among the 119 languages", "language", "unsupported_language")


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"prompt": "<|audio|>"}, "must not contain the audio token", "prompt"),
        ({"prompt": "uno dos " * 400}, "`prompt` is too long", "prompt"),
        ({"keywords": "<|audio|>"}, "`keywords` must not contain the audio token", "keywords"),
        ({"keywords": ["uno", "<|im_end|>"]}, "must not contain the special token", "keywords"),
        ({"temperature": "2"}, "a number from 0 to 1, got '2'", "temperature"),
        ({"temperature": "nan"}, "a number from 0 to 1", "temperature"),
        ({"response_format": "xml"}, "one of json, text, srt, verbose_json, vtt", "response_format"),
        ({"stream": "maybe"}, "one of true, false", "stream"),
        ({"stream": "true", "response_format": "srt"}, "with `response_format` 'json' or 'text'", "stream"),
        ({"timestamp_granularities[]": "word"}, "needs `response_format` 'verbose_json'", "timestamp_granularities"),
        (
            {"timestamp_granularities[]": "frame", "response_format": "verbose_json"},
            "must be one of segment, word",
            "timestamp_granularities",
        ),
        ({"num_beams": "5"}, "`num_beams` is not supported; supported are model, language", "num_beams"),
        ({"include[]": "logprobs"}, "`include` is not supported", "include"),
        ({"language": ["es", "en"]}, "`language` is given 2 times", "language"),
    ],
)
def test_fields_that_are_refused(address, speech, fields, message, param):
    check_error(post(address, speech[0], data=fields), 400, message, param)


def test_word_times_without_cif(parts, speech, cache, tmp_path):
    with serve(save(parts, tmp_path / "model", "moe"), cache, "--engine", "transformers") as address:
        fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
        check_error(post(address, speech[0], data=fields), 400, "has no CIF", "timestamp_granularities")
        body = post(address, speech[2], data={"response_format": "verbose_json"}).json()
        assert (body["segments"][0]["start"], body["segments"][-1]["end"]) == (0.0, 2.1)


def test_temperature(address, speech):
    texts = {post(address, speech[2], data={"temperature": "1"}).json()["text"] for _ in range(6)}
    assert len(texts) > 2


NOT_RECORDINGS = {
    "text": b"This is no recording. " * 100,
    "a header and no samples": encode(noise(1))[:44],
    "a broken header": encode(noise(1))[:30],
    "no samples": encode(np.zeros(0, "float32")),
    "less than a frame": encode(noise(0.01)),
    "random bytes": np.random.default_rng(0).bytes(20000),
    "M4A that breaks off": encode_container(noise(1), 16000, "ipod", "aac")[:5000],
    "NaN": encode(np.full(16000, np.nan, "float32"), file_format="W64"),
}


@pytest.mark.parametrize("name", NOT_RECORDINGS)
def test_files_that_are_not_recordings_are_refused(address, speech, name):
    if name == "NaN":
        contents = io.BytesIO()
        soundfile.write(contents, np.full(16000, np.nan, "float32"), 16000, format="WAV", subtype="FLOAT")
        contents = contents.getvalue()
    else:
        contents = NOT_RECORDINGS[name]
    error = check_error(post(address, contents), 400, "", "file", "invalid_audio")
    assert "0x" not in error["message"]
    assert post(address, speech[0]).status_code == 200


def test_silence_has_an_empty_transcript(address):
    for seconds in (20, 60):
        response = post(address, encode(np.zeros(16000 * seconds, "float32")))
        assert response.json()["text"] == ""


def test_forms_that_are_refused(address, speech):
    check_error(post(address, b""), 400, "`file` is empty", "file")
    check_error(httpx.post(address + ROUTE, json={"model": "tiny"}), 400, "must be multipart/form-data")
    check_error(httpx.post(address + ROUTE), 400, "must be multipart/form-data")
    check_error(
        httpx.post(address + ROUTE, files={"other": ("a.wav", speech[0])}), 400, "send it as the form's `file`", "file"
    )
    check_error(httpx.post(address + ROUTE, files={"model": (None, "tiny")}), 400, "The recording is missing", "file")
    twice = [("file", ("a.wav", speech[0])), ("file", ("b.wav", speech[0]))]
    check_error(httpx.post(address + ROUTE, files=twice), 400, "Too many files")
    large = post(address, speech[0], data={"prompt": "x" * 100_000})
    check_error(large, 400, "A field of the form is larger than 64 KiB", "file")
    # A part without a filename is a field.
    for contents, message in ((speech[0], "`file` has no filename"), (encode(noise(5)), "with a filename")):
        check_error(httpx.post(address + ROUTE, files={"file": (None, contents)}), 400, message, "file")
    broken = {"content-type": "multipart/form-data; boundary=b"}
    check_error(httpx.post(address + ROUTE, content=b"nonsense", headers=broken), 400, "form cannot be read")
    unbounded = {"content-type": "multipart/form-data"}
    check_error(httpx.post(address + ROUTE, content=b"--b\r\n", headers=unbounded), 400, "form cannot be read")
    check_error(httpx.get(address + "/v2/anything"), 404, "Not Found: GET /v2/anything")
    assert check_error(httpx.get(address + ROUTE), 405, "Method Not Allowed")
    assert post(address, speech[0]).status_code == 200


def test_files_that_are_too_large_or_too_long_are_refused(checkpoint, cache, speech):
    options = {"max_upload_mb": 0.5, "max_recording_s": 30.0}
    with serve(checkpoint, cache, "--engine", "transformers", **options) as address:
        large = encode(noise(60))
        check_error(post(address, large), 413, "larger than 0.5 MiB", "file", "file_too_large")
        # The client may not send the length, or the file may be only slightly too large.
        body = httpx.Request("POST", address, files={"file": ("a.wav", large)})
        chunks = (body.read()[start : start + 65536] for start in range(0, len(body.read()), 65536))
        response = httpx.post(address + ROUTE, content=chunks, headers={"content-type": body.headers["content-type"]})
        check_error(response, 413, "larger than 0.5 MiB", "file", "file_too_large")
        check_error(post(address, bytes(600_000)), 413, "larger than 0.5 MiB", "file", "file_too_large")
        # A file of half a megabyte may contain hours of audio.
        bomb = encode(np.zeros(16000 * 1200, "float32"), file_format="FLAC")
        assert len(bomb) < 500_000
        check_error(post(address, bomb), 400, "longer than the limit of 30 s", "file", "invalid_audio")
        assert post(address, speech[0]).status_code == 200


def test_the_server_writes_no_files(address, speech, long_recording, tmp_path, monkeypatch):
    """This includes the folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError):
        tempfile.mkdtemp()
    before = set(Path.cwd().iterdir())
    # By default, Starlette would write a file of this size to disk.
    assert len(long_recording) > 2**20
    assert post(address, long_recording, name="../../../../tmp/evil.wav").status_code == 200
    assert set(Path.cwd().iterdir()) == before


def test_requests_need_the_api_key(checkpoint, cache, speech):
    with serve(checkpoint, cache, "--engine", "transformers", api_key="geheim") as address:
        for headers in ({}, {"Authorization": "Bearer geheiM"}, {"Authorization": "geheim"}, {"Authorization": "ä"}):
            encoded = {name: value.encode("latin-1") for name, value in headers.items()}
            response = post(address, speech[0], headers=encoded)
            check_error(response, 401, "`Authorization: Bearer KEY`", None, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
            check_error(httpx.get(address + "/v1/models", headers=encoded), 401, "API key", None, "invalid_api_key")
        headers = {"Authorization": "Bearer geheim"}
        assert post(address, speech[0], headers=headers).status_code == 200
        assert httpx.get(address + "/v1/models", headers=headers).status_code == 200
        assert httpx.get(address + "/health").json() == {"status": "ok"}
        assert httpx.get(address + "/metrics").status_code == 200


def begin_upload(address, rest=b""):
    """A client that sends the start of a form and waits."""
    host, port = address.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    client.sendall(
        f"POST {ROUTE} HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: 100000\r\n\r\n--b\r\n".encode()
    )
    return client


def test_requests_beyond_the_limit_are_refused(checkpoint, cache, speech):
    with serve(checkpoint, cache, "--engine", "transformers", max_requests=2) as address:
        with begin_upload(address), begin_upload(address):
            wait_until(lambda: metric(address, "requests_in_progress") == 2)
            response = post(address, speech[0])
            check_error(response, 429, "2 requests are being transcribed already", None, "rate_limit_exceeded")
            assert int(response.headers["retry-after"]) >= 1
        wait_until(lambda: metric(address, "requests_in_progress") == 0)
        assert post(address, speech[0]).status_code == 200
        assert metric(address, 'requests_total{status="429"}') == 1
        assert metric(address, 'requests_total{status="499"}') == 2


def test_a_slow_upload_is_aborted(checkpoint, cache):
    with serve(checkpoint, cache, "--engine", "transformers", upload_timeout_s=0.3) as address:
        with begin_upload(address) as client:
            client.shutdown(socket.SHUT_WR)
            wait_until(lambda: metric(address, "requests_in_progress") == 0)
        with begin_upload(address) as client:
            wait_until(lambda: metric(address, "requests_in_progress") == 0)


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_request_of_a_disconnected_client_is_cancelled(checkpoint, cache, speech, stream):
    with serve(checkpoint, cache, "--engine", "transformers") as address:
        # The recording has 260 segments.
        request = {"files": {"file": ("a.wav", encode(np.tile(noise(60), 13)))}, "data": {"stream": stream}}
        if stream == "true":
            with httpx.stream("POST", address + ROUTE, **request) as response:
                assert next(response.iter_lines()).startswith("data: ")
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(address + ROUTE, **request, timeout=httpx.Timeout(60, read=0.5))
        wait_until(lambda: metric(address, "requests_in_progress") == 0, seconds=3.0)
        status = 200 if stream == "true" else 499
        assert metric(address, f'requests_total{{status="{status}"}}') == 1
        assert metric(address, "audio_seconds_total") == 0
        # The current batch is finished, and no other batch starts.
        wait_until(lambda: metric(address, "front_end_queue") == 0)
        time.sleep(0.3)
        begun = metric(address, "front_end_batch_sum")
        assert 0 < begun < 150
        time.sleep(0.3)
        assert metric(address, "front_end_batch_sum") == begun
        assert post(address, speech[0]).status_code == 200


def test_metrics(address, speech):
    before = metric(address, "audio_seconds_total")
    post(address, speech[2])
    assert metric(address, "audio_seconds_total") == pytest.approx(before + 2.1)
    assert metric(address, "request_seconds_count") > 0
    assert "process_resident_memory_bytes" in httpx.get(address + "/metrics").text


def test_sigterm_lets_requests_finish(checkpoint, cache, transcriber):
    command = [sys.executable, "-m", "llm_asr", "serve", checkpoint, "--cache-dir", cache]
    options = ["--engine", "transformers", "--port", str(free_port()), "--served-model-name", "tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        lines = []
        while "Uvicorn running on " not in (lines or [""])[-1]:
            lines.append(server.stderr.readline())
            assert lines[-1], "".join(lines)
        drain = threading.Thread(target=server.stderr.read)
        drain.start()
        address = f"http://127.0.0.1:{options[3]}"
        contents = encode(np.tile(noise(30), 4))
        with ThreadPoolExecutor(1) as clients:
            answer = clients.submit(post, address, contents)
            wait_until(lambda: metric(address, "new_tokens_total") > 50)
            assert not answer.done()
            server.terminate()
            assert answer.result().json()["text"] == transcriber(contents)["text"]
        assert server.wait(20) == -signal.SIGTERM
        with pytest.raises(httpx.ConnectError):
            httpx.get(address + "/health")
        drain.join()
    finally:
        server.kill()
        server.wait()


def test_pages_of_configured_origins_are_allowed(checkpoint, cache, speech):
    preflight = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    with serve(checkpoint, cache, "--engine", "transformers", cors_origins=("https://example.org",)) as address:
        allowed = httpx.options(address + ROUTE, headers=preflight)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        answer = httpx.post(
            address + ROUTE, files={"file": ("a.wav", speech[0])}, headers={"Origin": "https://example.org"}
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        other = httpx.get(address + "/health", headers={"Origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers


def test_other_origins_are_refused_by_default(address):
    answer = httpx.get(address + "/health", headers={"Origin": "https://example.org"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_broken_upload_does_not_affect_others(address, transcriber, recordings):
    """Samples of 1e30 would make CIF's weights NaN."""
    broken = io.BytesIO()
    soundfile.write(broken, np.full(16000, 1e30, "float32"), 16000, format="WAV", subtype="FLOAT")
    uploads = [encode(recording) for recording in recordings * 3]
    uploads.insert(4, broken.getvalue())
    with ThreadPoolExecutor(len(uploads)) as pool:
        answers = list(pool.map(lambda contents: post(address, contents), uploads))
    check_error(answers.pop(4), 400, "holds samples up to 1e+30, but full scale is 1", "file", "invalid_audio")
    expected = [transcriber(contents)["text"] for contents in uploads[:3]]
    assert [answer.json()["text"] for answer in answers] == expected * 3


@pytest.mark.parametrize("part", ["front_end", "engine"])
def test_health_reports_whether_requests_can_be_answered(checkpoint, cache, speech, part):
    servers = []
    with serve(checkpoint, cache, "--engine", "transformers", on_made=servers.append) as address:
        assert httpx.get(address + "/health").status_code == 200
        transcriber = servers[0].transcriber
        batcher = transcriber.front_end.batcher if part == "front_end" else transcriber.engine._batcher
        batcher._worker.get_loop().call_soon_threadsafe(batcher._worker.cancel)
        wait_until(lambda: not batcher.is_running)
        check_error(httpx.get(address + "/health"), 503, "has stopped; restart the server", code="engine_dead")
        # Requests get an answer instead of waiting endlessly.
        assert post(address, speech[0]).status_code == 500


def test_confidence_does_not_keep_the_logits_of_every_step(checkpoint, cache, speech):
    """The logits would have the size of steps times vocabulary in float32."""
    servers = []
    with serve(checkpoint, cache, "--engine", "transformers", on_made=servers.append) as address:
        seen = []
        model = servers[0].transcriber.engine.model
        generate = model.generate
        model.generate = lambda **kwargs: (seen.append(kwargs), generate(**kwargs))[1]
        verbose = post(address, speech[2], data={"response_format": "verbose_json"}).json()
        assert seen
        assert not any(options.get("output_logits") or options.get("output_scores") for options in seen)
        segment = verbose["segments"][0]
        assert segment["avg_logprob"] < 0
        assert 0 <= segment["no_speech_prob"] <= 1
