"""vLLM generates the same tokens as `generate()`, alone and among other requests."""

import asyncio
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest


pytest.importorskip("vllm", reason="needs vLLM; docs/serve.md says how to install it")

import httpx
import soundfile
import torch
from live_server import free_port, wait_until
from test_http import ROUTE, metric, noise, post
from tiny_models import compose, make_tokenizer
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, pipeline

from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES
from llm_asr.publishing.export import export_for_serving
from llm_asr.serving.engine import Decoding
from llm_asr.serving.front_end_runner import FrontEndRunner
from llm_asr.serving.metrics import Metrics
from llm_asr.serving.settings import ServerSettings
from llm_asr.serving.transcriber import Request, Transcriber
from llm_asr.serving.vllm_engine import VllmEngine, check_is_followed


pytestmark = [pytest.mark.vllm, pytest.mark.slow]

# Enough for a tiny model. By default vLLM takes half of the memory.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
ENGINE_ARGS = {"enforce_eager": True}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """A tiny language model whose head size vLLM's kernels support."""
    folder = str(tmp_path_factory.mktemp("text"))
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(parts, text_model):
    """A model and its processor for each projector type, all with the same language model."""
    found = {}
    for projector_type in PROJECTOR_TYPES:
        torch.manual_seed(0)
        model, processor = compose({**parts, "text": text_model}, projector_type, text="text")
        if found:
            first = next(iter(found.values()))[0]
            model.model.language_model.load_state_dict(first.model.language_model.state_dict())
            model.lm_head.load_state_dict(first.lm_head.state_dict())
        model.generation_config.max_new_tokens_per_second = 8.0
        found[projector_type] = model, processor
    return found


@pytest.fixture(scope="module")
def exports(models, tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    for projector_type, (model, processor) in models.items():
        export_for_serving(model, processor, root / projector_type)
    weights = {(root / name / "language_model" / "model.safetensors").read_bytes() for name in models}
    assert len(weights) == 1
    return root


@pytest.fixture(scope="module")
def loop():
    """The engine's event loop in a separate thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def run(loop):
    return lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(300)


@pytest.fixture(scope="module")
def engine(exports, run):
    engine = VllmEngine(exports / "conv" / "language_model", "auto", ENGINE_ARGS)
    run(engine.start())
    yield engine
    run(engine.stop())


@pytest.fixture
def make_transcriber(exports, engine, run):
    """Creates transcribers by projector type."""
    runners = []

    async def start(projector_type):
        metrics, settings = Metrics(), ServerSettings(batch_wait_ms=20.0)
        runner = FrontEndRunner(
            exports / projector_type / "front_end",
            "auto",
            torch.device("cpu"),
            settings,
            metrics.front_end_batch.observe,
        )
        runner.start()
        runners.append(runner)
        return Transcriber(runner, engine, settings, metrics)

    yield lambda projector_type: run(start(projector_type))
    for runner in runners:
        run(runner.stop())


def encode(waveform):
    contents = io.BytesIO()
    # Use a lossless format, so that `generate` gets the same samples.
    soundfile.write(contents, waveform, 16000, format="WAV", subtype="FLOAT")
    return contents.getvalue()


def requests(decoding):
    recordings = [noise(0.3 + number / 6, number) for number in range(16)]
    options = [
        {
            "language": (None, "Spanish", "English")[number % 3],
            "prompt": (None, None, None, "uno dos tres")[number % 4],
        }
        for number in range(16)
    ]
    return (
        recordings,
        options,
        [Request(encode(one), **how, decoding=decoding) for one, how in zip(recordings, options, strict=True)],
    )


def generate(model, processor, recording, options, **kwargs):
    inputs = processor.apply_transcription_request(recording, **options, identify_language=options["language"] is None)
    return model.generate(**inputs, **kwargs)


def tokens_of(transcript):
    (piece,) = transcript.pieces
    return piece["tokens"][0]


@pytest.mark.parametrize("projector_type", PROJECTOR_TYPES)
def test_the_same_tokens_alone_and_among_sixteen(models, make_transcriber, run, projector_type):
    model, processor = models[projector_type]
    transcriber = make_transcriber(projector_type)
    recordings, options, jobs = requests(Decoding(temperature=0.0))
    expected = [
        generate(model, processor, recording, how)[0].tolist()
        for recording, how in zip(recordings, options, strict=True)
    ]
    # The transcripts must differ, or the test would pass with any model.
    assert len({tuple(row) for row in expected}) > 8
    assert len({len(row) for row in expected}) > 4

    async def alone():
        return [tokens_of(await transcriber.transcribe(job)) for job in jobs]

    async def together():
        return [tokens_of(found) for found in await asyncio.gather(*map(transcriber.transcribe, jobs))]

    assert run(alone()) == expected
    assert run(together()) == expected
    batches = transcriber.metrics.front_end_batch
    assert batches._sum.get() == 32
    assert sum(bucket.get() for bucket in batches._buckets) < 32


def test_confidence(models, make_transcriber, run):
    model, processor = models["cif"]
    transcriber = make_transcriber("cif")
    recordings, options, jobs = requests(Decoding(temperature=0.0, output_confidence=True))
    for recording, how, job in zip(recordings[:4], options, jobs, strict=False):
        expected = generate(model, processor, recording, how, return_dict_in_generate=True, output_confidence=True)
        (piece,) = run(transcriber.transcribe(job)).pieces
        assert piece["avg_logprobs"][0] == pytest.approx(float(expected.avg_logprobs[0]), abs=1e-4)
        assert piece["no_speech_probs"][0] == pytest.approx(float(expected.no_speech_probs[0]), abs=1e-5)
        np.testing.assert_allclose(piece["alphas"][0], expected.alphas[0], atol=1e-5)


def test_suppressed_tokens(models, engine, make_transcriber, run, monkeypatch):
    model, processor = models["moe"]
    transcriber = make_transcriber("moe")
    recordings, options, jobs = requests(Decoding(temperature=0.0))
    usual = generate(model, processor, recordings[9], options[9])[0].tolist()
    monkeypatch.setattr(engine.generation_config, "suppress_tokens", usual[:3])
    expected = generate(model, processor, recordings[9], options[9], suppress_tokens=usual[:3])[0].tolist()
    assert not set(usual[:3]) & set(expected)
    assert tokens_of(run(transcriber.transcribe(jobs[9]))) == expected


def test_sampling(make_transcriber, run):
    transcriber = make_transcriber("conv")
    _, _, jobs = requests(Decoding(temperature=1.0))
    found = {tuple(tokens_of(run(transcriber.transcribe(jobs[9])))) for _ in range(5)}
    assert len(found) > 2


def test_a_cancelled_request_is_removed_from_the_engine(engine, make_transcriber, run):
    transcriber = make_transcriber("conv")
    job = Request(encode(np.tile(noise(30), 4)), None, None, Decoding(temperature=0.0))

    async def leave():
        task = asyncio.create_task(transcriber.transcribe(job))
        while not engine.engine.output_processor.get_num_unfinished_requests():
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        for _ in range(100):
            if not engine.engine.output_processor.get_num_unfinished_requests():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("Requests are still there.")

    run(leave())
    run(engine.check_health())


@pytest.mark.parametrize("options", [{"num_beams": 4}, {"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 3}])
def test_options_with_another_meaning_in_vllm_are_refused(options):
    check_is_followed(GenerationConfig(do_sample=False, num_beams=1, eos_token_id=1, suppress_tokens=[3]))
    with pytest.raises(ValueError, match=next(iter(options))):
        check_is_followed(GenerationConfig(**options))


def test_unknown_engine_arguments(exports):
    with pytest.raises(ValueError, match="`engine_args`: .*no_such_option"):
        VllmEngine(exports / "conv" / "language_model", "auto", {"no_such_option": 1})


def test_the_command_serves_a_checkpoint(models, tmp_path, monkeypatch):
    """The server answers, cancels the request of a disconnected client, and finishes requests after SIGTERM."""
    model, processor = models["moe_cif"]
    monkeypatch.setattr(model.generation_config, "max_new_tokens", 12)
    checkpoint = str(tmp_path / "model")
    model.save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    transcriber = pipeline("automatic-speech-recognition", model=checkpoint)
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "llm_asr", "serve", checkpoint, "--cache-dir", str(tmp_path / "cache")]
    options = ["--port", address.rpartition(":")[2], "--engine-args", '{"enforce_eager": true}']
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:

        def is_up():
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                return httpx.get(address + "/health").status_code == 200
            except httpx.ConnectError:
                return False

        wait_until(is_up, seconds=200)
        short, long = encode(noise(2.0)), encode(np.tile(noise(30), 4))
        assert post(address, short).json()["text"] == transcriber(short)["text"]
        assert "vllm:num_requests_running" in httpx.get(address + "/metrics").text
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + ROUTE, files={"file": ("a.wav", long)}, timeout=httpx.Timeout(60, read=0.4))
        wait_until(lambda: metric(address, "requests_in_progress") == 0)
        with ThreadPoolExecutor(1) as clients:
            before = metric(address, "new_tokens_total")
            answer = clients.submit(post, address, long)
            wait_until(lambda: metric(address, "new_tokens_total") > before)
            assert not answer.done()
            server.send_signal(signal.SIGTERM)
            assert answer.result().json()["text"] == transcriber(long)["text"]
        assert server.wait(60) == -signal.SIGTERM
    finally:
        server.kill()
        server.wait()
        log.close()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
