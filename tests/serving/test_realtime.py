"""The realtime API over loopback, with OpenAI's client."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from tiny_models import compose


HOW = 'pip install "llm-asr[serve]" "openai[realtime]"'
openai = pytest.importorskip("openai", reason=HOW)
httpx = pytest.importorskip("httpx", reason=HOW)
pytest.importorskip("prometheus_client", reason=HOW)
pytest.importorskip("starlette", reason=HOW)
pytest.importorskip("uvicorn", reason=HOW)
websockets = pytest.importorskip("websockets", reason=HOW)

from live_server import free_port, serve, wait_until  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from llm_asr.live.stream import LlmAsrStream  # noqa: E402


RATE = 24000
KIND = "conversation.item.input_audio_transcription"


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = compose(parts, "cif")
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def address(checkpoint, cache):
    with serve(checkpoint, cache, "--engine", "transformers", stream_idle_s=20.0) as address:
        yield address


@pytest.fixture(scope="module")
def speech():
    """Two segments of speech, as PCM of 16 bits."""
    generator = np.random.default_rng(0)

    def noise(seconds):
        return 0.1 * generator.standard_normal(int(RATE * seconds))

    silence = np.zeros(RATE)
    waveform = np.concatenate([silence, noise(1.5), silence, noise(0.8), silence])
    return (32767 * waveform).astype("<i2").tobytes()


def transcribe(checkpoint, speech, **kwargs):
    """Texts of the segments by a stream in Python."""
    from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor

    model, processor = (one.from_pretrained(checkpoint) for one in (LlmAsrForConditionalGeneration, LlmAsrProcessor))
    stream = LlmAsrStream(model.eval(), processor, "es", sampling_rate=RATE, lead_s=0.3, **kwargs)
    return [event.segment.text for event in stream.push(speech) + stream.finish() if event.segment]


@pytest.fixture(scope="module")
def expected(checkpoint, speech):
    return transcribe(checkpoint, speech)


def encode(contents):
    return base64.b64encode(contents).decode()


def open_raw(address, query="intent=transcription", **kwargs):
    return connect(f"{address.replace('http', 'ws')}/v1/realtime?{query}", **kwargs)


def receive_until(socket, kind):
    events = [json.loads(socket.recv(timeout=20))]
    while events[-1]["type"] != kind:
        events.append(json.loads(socket.recv(timeout=20)))
    return events


def receive_all(socket):
    """Read events until the connection is closed, and return the code that has closed it."""
    try:
        while True:
            socket.recv(timeout=10)
    except websockets.ConnectionClosed as closed:
        return closed.rcvd.code


def send(socket, kind, **fields):
    socket.send(json.dumps({"type": kind, **fields}))


def metric(address, name):
    rows = dict(
        row.rsplit(" ", 1) for row in httpx.get(address + "/metrics").text.splitlines() if not row.startswith("#")
    )
    return float(rows[f"llm_asr_{name}"])


def session(**fields):
    return {"type": "transcription", "audio": {"input": fields}}


def run_client(address, speech, block=4800):
    """All events that OpenAI's client receives up to the second transcript."""

    async def run():
        client = openai.AsyncOpenAI(base_url=address + "/v1", api_key="none")
        events = []
        async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
            await connection.session.update(session=session(transcription={"model": "tiny", "language": "es"}))
            for start in range(0, len(speech), block):
                await connection.input_audio_buffer.append(audio=encode(speech[start : start + block]))
            async for event in connection:
                events.append(event)
                if sum(one.type == "conversation.item.done" for one in events) == 2:
                    return events

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_the_openai_client_gets_the_text_of_the_segments(address, speech, expected):
    events = run_client(address, speech)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["session.created", "session.updated"]
    assert events[1].session.audio.input.transcription.language == "es"
    completed = [event for event in events if event.type == f"{KIND}.completed"]
    assert [event.transcript for event in completed] == expected
    assert len(expected) == 2
    for number, event in enumerate(completed):
        own = [one for one in events if getattr(one, "item_id", None) == event.item_id]
        assert own[0].type == "input_audio_buffer.speech_started"
        stopped = next(one for one in own if one.type == "input_audio_buffer.speech_stopped")
        assert own[-1] is event
        assert event.usage.seconds == pytest.approx((stopped.audio_end_ms - own[0].audio_start_ms) / 1000, abs=0.01)
        committed = next(one for one in own if one.type == "input_audio_buffer.committed")
        assert committed.previous_item_id == (completed[0].item_id if number else None)
    assert next(one for one in events if one.type.endswith("started")).audio_start_ms == pytest.approx(700, abs=50)


def test_many_clients_at_once(address, speech, expected):
    found = [None] * 4

    def run(number):
        events = run_client(address, speech, block=3000 + 1000 * number)
        found[number] = [event.transcript for event in events if event.type == f"{KIND}.completed"]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    wait_until(lambda: metric(address, "realtime_streams") == 0)
    assert metric(address, "realtime_latency_seconds_count") > 0
    assert metric(address, "realtime_lag_seconds_count") > 0


def test_the_client_commits(address, speech):
    with open_raw(address) as socket:
        send(socket, "session.update", session=session(turn_detection=None))
        send(socket, "input_audio_buffer.append", audio=encode(speech))
        send(socket, "input_audio_buffer.commit", event_id="mine")
        events = receive_until(socket, "conversation.item.done")
        kinds = [event["type"] for event in events]
        assert "input_audio_buffer.speech_started" not in kinds
        assert kinds.count(f"{KIND}.completed") == 1
        completed = events[-2]
        assert completed["usage"] == {"type": "duration", "seconds": round(len(speech) / 2 / RATE, 3)}
        assert completed["transcript"]
        send(socket, "input_audio_buffer.commit", event_id="again")
        (error,) = receive_until(socket, "error")
        assert error["error"]["code"] == "input_audio_buffer_commit_empty"
        assert error["error"]["event_id"] == "again"
        send(socket, "input_audio_buffer.append", audio=encode(bytes(RATE)))
        send(socket, "input_audio_buffer.clear")
        receive_until(socket, "input_audio_buffer.cleared")
        send(socket, "input_audio_buffer.commit")
        receive_until(socket, "error")
        # Silence that is committed is an item without text.
        send(socket, "input_audio_buffer.append", audio=encode(bytes(RATE)))
        send(socket, "input_audio_buffer.commit")
        assert receive_until(socket, "conversation.item.done")[-2]["transcript"] == ""


def test_keywords_are_in_the_prompt(address, checkpoint, speech, expected):
    keywords = ["Iñigo", "Qwen"]
    with open_raw(address) as socket:
        send(socket, "session.update", session=session(transcription={"language": "es", "keywords": keywords}))
        updated = receive_until(socket, "session.updated")[-1]["session"]
        assert updated["audio"]["input"]["transcription"]["keywords"] == keywords
        send(socket, "input_audio_buffer.append", audio=encode(speech))
        transcripts = [receive_until(socket, f"{KIND}.completed")[-1]["transcript"] for _ in expected]
    assert transcripts == transcribe(checkpoint, speech, keywords=keywords)
    assert transcripts != expected


def test_silence_gives_no_event(address):
    with open_raw(address) as socket:
        receive_until(socket, "session.created")
        send(socket, "input_audio_buffer.append", audio=encode(bytes(2 * 20 * RATE)))
        send(socket, "session.update", session=session())
        assert len(receive_until(socket, "session.updated")) == 1


def test_the_beta_form(address, speech, expected):
    with open_raw(address, additional_headers={"OpenAI-Beta": "realtime=v1"}) as socket:
        receive_until(socket, "transcription_session.created")
        detection = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 500}
        given = {
            "input_audio_format": "pcm16",
            "input_audio_transcription": {"model": "whisper-1", "language": "es"},
            "turn_detection": detection,
        }
        send(socket, "transcription_session.update", session=given)
        updated = receive_until(socket, "transcription_session.updated")[-1]["session"]
        assert updated["turn_detection"] == detection
        send(socket, "input_audio_buffer.append", audio=encode(speech))
        events = receive_until(socket, f"{KIND}.completed")
        assert "conversation.item.created" in [event["type"] for event in events]
        assert events[-1]["transcript"] == expected[0]


@pytest.mark.parametrize(
    ("event", "param", "code"),
    [
        ("{", None, "invalid_json"),
        ({"type": "response.create"}, "type", "unknown_event_type"),
        ({"type": "input_audio_buffer.append"}, "audio", "missing_required_parameter"),
        ({"type": "input_audio_buffer.append", "audio": "AAA="}, None, None),
        ({"type": "input_audio_buffer.append", "audio": "AA=="}, "audio", "invalid_audio"),
        ({"type": "input_audio_buffer.append", "audio": "?"}, "audio", "invalid_base64"),
        ({"type": "input_audio_buffer.commit", "now": True}, "now", "unknown_parameter"),
        (session(), "session.include", None),
        (session(voice="alloy"), "session.audio.input.voice", "unknown_parameter"),
        (session(noise_reduction={"type": "near_field"}), "session.audio.input.noise_reduction", "invalid_value"),
        (session(format={"type": "audio/pcmu"}), "session.audio.input.format.type", "invalid_value"),
        (session(format={"type": "audio/pcm", "rate": 100}), "session.audio.input.format.rate", "invalid_value"),
        (session(transcription={"model": "other"}), "session.audio.input.transcription.model", "model_not_found"),
        (session(transcription={"language": "klingon"}), "language", "unsupported_language"),
        (session(transcription={"prompt": "<|audio|>"}), "prompt", "invalid_value"),
        (session(transcription={"keywords": ["<|audio|>"]}), "keywords", "invalid_value"),
        (session(transcription={"keywords": "Qwen"}), "session.audio.input.transcription.keywords", "invalid_type"),
        (session(transcription={"keywords": [" "]}), "session.audio.input.transcription.keywords", "invalid_type"),
        (session(transcription={"language": 5}), "session.audio.input.transcription.language", "invalid_type"),
        (session(turn_detection={"type": "semantic_vad"}), "session.audio.input.turn_detection.type", "invalid_value"),
        (
            session(turn_detection={"type": "server_vad", "threshold": 2}),
            "session.audio.input.turn_detection.threshold",
            "invalid_value",
        ),
        (
            session(turn_detection={"type": "server_vad", "create_response": True}),
            "session.audio.input.turn_detection.create_response",
            "invalid_value",
        ),
    ],
)
def test_events_that_are_refused(address, event, param, code):
    if isinstance(event, dict) and event["type"] == "transcription":
        event = {"type": "session.update", "session": event}
    if param == "session.include":
        event["session"]["include"] = ["item.input_audio_transcription.logprobs"]
        code = "invalid_value"
    with open_raw(address) as socket:
        receive_until(socket, "session.created")
        if code is None:
            # Two bytes are one sample.
            socket.send(json.dumps(event))
        else:
            socket.send(event if isinstance(event, str) else json.dumps({**event, "event_id": "mine"}))
            (found,) = receive_until(socket, "error")
            assert (found["error"]["param"], found["error"]["code"]) == (param, code)
            assert found["error"]["event_id"] == (None if isinstance(event, str) else "mine")
        # The session goes on.
        send(socket, "session.update", session=session())
        receive_until(socket, "session.updated")


def refused(address, *args, **kwargs):
    with pytest.raises(websockets.InvalidStatus) as error, open_raw(address, *args, **kwargs):
        pass
    return error.value.response.status_code, json.loads(error.value.response.body)["error"]


def test_connections_that_are_refused(address):
    assert refused(address, "model=tiny")[0] == 400
    assert refused(address, "intent=transcription&voice=a")[1]["param"] == "voice"
    assert refused(address, "intent=transcription&model=large")[1]["code"] == "model_not_found"
    assert refused(address, origin="https://example.org")[0] == 403


def test_a_key_and_the_number_of_sessions(checkpoint, cache):
    with serve(checkpoint, cache, "--engine", "transformers", api_key="geheim", max_streams=1) as address:
        assert refused(address)[0] == 401
        assert refused(address, additional_headers={"Authorization": "Bearer wrong"})[1]["code"] == "invalid_api_key"
        with open_raw(address, subprotocols=["realtime", "openai-insecure-api-key.geheim"]) as socket:
            receive_until(socket, "session.created")
            status, error = refused(address, additional_headers={"Authorization": "Bearer geheim"})
            assert (status, error["code"]) == (429, "rate_limit_exceeded")
        wait_until(lambda: metric(address, "realtime_streams") == 0)
        with open_raw(address, additional_headers={"Authorization": "Bearer geheim"}) as socket:
            receive_until(socket, "session.created")


def test_limits_end_a_session(checkpoint, cache, speech):
    options = {"max_stream_s": 2.0, "stream_idle_s": 1.0}
    with serve(checkpoint, cache, "--engine", "transformers", **options) as address:
        with open_raw(address) as socket:
            receive_until(socket, "session.created")
            (error,) = receive_until(socket, "error")
            assert error["error"]["code"] == "idle_timeout"
            with pytest.raises(websockets.ConnectionClosedOK):
                socket.recv(timeout=10)
        with open_raw(address) as socket:
            send(socket, "input_audio_buffer.append", audio=encode(speech))
            codes = [event["error"]["code"] for event in receive_until(socket, "error") if event["type"] == "error"]
            assert codes == ["session_expired"]
            assert receive_all(socket) == 1000
        wait_until(lambda: metric(address, "realtime_streams") == 0)


def test_sigterm_ends_sessions_with_their_last_transcript(checkpoint, cache, speech):
    command = [sys.executable, "-m", "llm_asr", "serve", checkpoint, "--cache-dir", cache, "--engine", "transformers"]
    port = str(free_port())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([*command, "--port", port], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        lines = [""]
        while "Uvicorn running on " not in lines[-1]:
            lines.append(server.stderr.readline())
            assert lines[-1], "".join(lines)
        drain = threading.Thread(target=server.stderr.read)
        drain.start()
        address = f"http://127.0.0.1:{port}"
        with open_raw(address) as socket:
            send(socket, "input_audio_buffer.append", audio=encode(speech[: 2 * 2 * RATE]))
            receive_until(socket, "input_audio_buffer.speech_started")
            server.terminate()
            receive_until(socket, f"{KIND}.completed")
            assert receive_all(socket) == 1001
        assert server.wait(20) == -signal.SIGTERM
        drain.join()
    finally:
        server.kill()
        server.wait()
