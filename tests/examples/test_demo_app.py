"""
Tests of `examples/demo_app.py` in a real browser.

`make test-app` runs this file. It installs Gradio, Playwright and, from Debian's packages and without root, a headless Chromium.
On other systems use `pip install -e ".[app]" playwright && playwright install --with-deps chromium`.
"""

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile
from tiny_models import compose
from transformers import pipeline


pytest.importorskip("gradio", reason="the demo app needs Gradio: `make test-app` installs it")

import demo_app
from demo_app import LET_THE_MODEL_NAME_IT

from llm_asr.live.stream import LlmAsrStream


APP = Path(demo_app.__file__)


def save_model(parts, folder, projector_type):
    """A model that only writes letters and spaces, which a browser shows unchanged."""
    model, processor = compose(parts, projector_type)
    readable = {
        token
        for token in range(model.config.text_config.vocab_size)
        if re.fullmatch("[a-z ]+", processor.tokenizer.decode([token]))
    }
    model.generation_config.suppress_tokens = sorted(set(range(model.config.text_config.vocab_size)) - readable)
    model.generation_config.max_new_tokens = 12
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    return save_model(parts, tmp_path_factory.mktemp("checkpoint"), "moe_cif")


@pytest.fixture(scope="module")
def transcriber(checkpoint):
    return pipeline("automatic-speech-recognition", model=checkpoint)


@pytest.fixture
def file(recordings, tmp_path):
    soundfile.write(tmp_path / "speech.wav", recordings[2], 16000)
    return str(tmp_path / "speech.wav")


@pytest.fixture
def corrupt_file(tmp_path):
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF, and then nothing that is sound")
    return str(tmp_path / "corrupt.wav")


@pytest.fixture
def silent_file(tmp_path):
    # The recording is longer than the speech encoder's window, so that it is split at silences.
    soundfile.write(tmp_path / "silence.wav", np.zeros(5 * 16000), 16000)
    return str(tmp_path / "silence.wav")


def test_the_app_shows_the_output_of_the_pipeline(transcriber, file):
    expected = transcriber(file, return_timestamps="word")
    text, _, plot, times, shares = demo_app.transcribe(transcriber, file, LET_THE_MODEL_NAME_IT, "")
    assert text == expected["text"] != ""
    assert [word for _, _, word in times] == text.split() == [label.get_text() for label in plot.axes[0].texts]
    assert times[0][:2] == pytest.approx(expected["chunks"][0]["timestamp"], abs=0.005)
    assert len(plot.axes[0].patches) == len(times)
    assert len(shares) == transcriber.model.config.projector_config.num_experts
    assert sum(shares.values()) == pytest.approx(1.0)
    other, language, *_ = demo_app.transcribe(transcriber, file, "Spanish", " numbers ")
    assert other == transcriber(file, language="es", prompt="numbers")["text"] != text
    assert language == "Spanish"


def test_projectors_without_cif_or_experts(parts, file, tmp_path):
    transcriber = pipeline("automatic-speech-recognition", model=save_model(parts, tmp_path / "model", "conv"))
    text, _, plot, times, shares = demo_app.transcribe(transcriber, file, LET_THE_MODEL_NAME_IT, "")
    assert times == [[0.0, 2.1, text]]
    assert not plot.axes[0].texts
    assert shares is None


def test_overlapping_words_are_not_drawn(transcriber, file, monkeypatch):
    monkeypatch.setattr(demo_app, "MAX_WORDS", 1)
    _, _, plot, times, _ = demo_app.transcribe(transcriber, file, LET_THE_MODEL_NAME_IT, "")
    assert len(times) > 1
    assert len(plot.axes[0].patches) < len(times)
    assert not plot.axes[0].texts


def test_errors_are_shown_as_messages(transcriber, file, corrupt_file, silent_file):
    requests = [
        ((None, LET_THE_MODEL_NAME_IT, ""), "Record or upload speech first"),
        ((silent_file, LET_THE_MODEL_NAME_IT, ""), "No speech was found"),
        ((corrupt_file, LET_THE_MODEL_NAME_IT, ""), "cannot be read from &#x27;corrupt.wav&#x27;"),
        ((file, LET_THE_MODEL_NAME_IT, "<|audio|>"), "must not contain the audio token &#x27;&lt;|audio|&gt;&#x27;"),
    ]
    for request, message in requests:
        with pytest.warns(UserWarning, match=re.escape(message)) as warned:
            assert demo_app.transcribe(transcriber, *request) == ("", "", None, None, None)
        assert os.path.dirname(corrupt_file) not in str(warned[-1].message)


def test_the_live_tab_shows_the_events_of_the_stream(transcriber, recordings):
    # Browsers give integers at their own rate, samples first.
    samples = np.repeat(np.concatenate([np.zeros(8000), *recordings]), 3)
    samples = np.stack([samples, samples], 1)
    blocks = np.array_split((32767 * samples).astype(np.int16), 9)
    state, shown = demo_app.start_listening()
    assert shown == ""
    texts = []
    for block in blocks:
        state, shown = demo_app.listen(transcriber, state, (48000, block), "Spanish")
        texts.append(state.committed)
    state, shown = demo_app.stop_listening(state)
    stream = LlmAsrStream(transcriber.model, transcriber.processor, "es", sampling_rate=48000)
    events = [event for block in blocks for event in stream.push(np.ascontiguousarray(block.T), catch_up=True)]
    expected = "".join(event.committed for event in [*events, *stream.finish()])
    assert state.committed == expected != ""
    assert f">{expected}<" in shown
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise([*texts, state.committed]))
    # A block that comes after the end changes nothing, and neither does a page that never recorded.
    assert demo_app.listen(transcriber, state, (48000, blocks[0]), "Spanish")[1] == shown
    assert demo_app.stop_listening(demo_app.LiveState())[1] == demo_app.LiveState().show()


def test_a_live_block_that_cannot_be_used_is_a_message(transcriber):
    state, _ = demo_app.start_listening()
    with pytest.warns(UserWarning, match="sampling_rate"):
        demo_app.listen(transcriber, state, (100, np.zeros(100, np.int16)), LET_THE_MODEL_NAME_IT)


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(recordings_folder):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: `make test-app` installs it")
    with sync_api.sync_playwright() as playwright:
        names = ("chromium", "chromium-headless-shell", "google-chrome")
        installed = [os.environ.get("CHROMIUM"), *map(shutil.which, names), playwright.chromium.executable_path]
        executable = next((path for path in installed if path and os.path.exists(path)), None)
        if executable is None:
            pytest.skip("needs Chromium: `make test-app` fetches it, or set CHROMIUM to its path")
        microphone = [
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={recordings_folder / 'microphone.wav'}",
        ]
        browser = playwright.chromium.launch(executable_path=executable, args=microphone)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def recordings_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(folder / "microphone.wav", noise, 16000)
    return folder


@pytest.fixture(scope="module")
def address(checkpoint, tmp_path_factory):
    """Address of the app, started as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads"), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, str(APP), "--model", checkpoint, "--device", "cpu", "--port", str(port)]
    with (
        open(folder / "log.txt", "w+") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urlopen(address).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log.txt").read_text()
                    time.sleep(0.5)
            yield address
        finally:
            process.terminate()
        process.wait(timeout=30)
    log = (folder / "log.txt").read_text()
    assert f"Running on local URL:  {address}" in log
    assert "Traceback" not in log


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_role("button", name="Transcribe").wait_for()
    yield page
    page.close()


def upload(page, file):
    page.set_input_files("input[type=file]", file)
    page.get_by_role("button", name="Clear").first.wait_for()


def press_transcribe(page):
    page.get_by_role("button", name="Transcribe").click()


@pytest.mark.slow
def test_a_recording_is_uploaded_and_its_transcript_read(browser, page, transcriber, file, tmp_path):
    from playwright.sync_api import expect

    expected = transcriber(file, return_timestamps="word")
    upload(page, file)
    press_transcribe(page)
    expect(page.locator("#transcript textarea")).to_have_value(expected["text"], timeout=60_000)
    expect(page.locator("#plot img")).to_be_visible()
    expect(page.locator("#experts")).to_contain_text("expert 3")
    for chunk in expected["chunks"]:
        expect(page.locator("#times")).to_contain_text(chunk["text"])
    page.screenshot(path=tmp_path / "page.png", full_page=True)

    # Transcribe the same recording again with a given language.
    page.get_by_label("Language", exact=True).click()
    page.get_by_role("option", name="Spanish", exact=True).click()
    press_transcribe(page)
    told = transcriber(file, language="Spanish")["text"]
    assert told != expected["text"]
    expect(page.locator("#transcript textarea")).to_have_value(told, timeout=60_000)
    expect(page.locator("#spoken-language textarea")).to_have_value("Spanish")


@pytest.mark.slow
def test_messages_in_the_browser(page, corrupt_file, silent_file):
    from playwright.sync_api import expect

    press_transcribe(page)
    expect(page.get_by_text("Record or upload speech first.")).to_be_visible()
    upload(page, corrupt_file)
    press_transcribe(page)
    expect(page.get_by_text("cannot be read from 'corrupt.wav'")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Clear").first.click()
    upload(page, silent_file)
    press_transcribe(page)
    expect(page.get_by_text("No speech was found in the recording.")).to_be_visible(timeout=60_000)
    expect(page.locator("#transcript textarea")).to_have_value("")


@pytest.mark.slow
def test_a_recording_is_made_with_the_microphone(page):
    from playwright.sync_api import expect

    page.get_by_label("Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1500)
    with page.expect_response(lambda response: "/upload" in response.url):
        page.get_by_role("button", name="Stop", exact=True).locator("visible=true").click()
    page.get_by_role("button", name="Play", exact=True).wait_for()
    press_transcribe(page)
    expect(page.locator("#transcript textarea")).to_have_value(re.compile("[a-z]"), timeout=60_000)


@pytest.mark.slow
def test_the_microphone_is_transcribed_while_it_is_on(page):
    from playwright.sync_api import expect

    page.get_by_role("tab", name="Live").click()
    live = page.get_by_role("tabpanel").locator("visible=true")
    live.get_by_label("Spoken language").wait_for()
    live.get_by_role("button", name="Record", exact=True).click()
    text = page.locator("#live-text")
    # Text appears before the recording is stopped.
    expect(text).to_contain_text(re.compile("[a-z]{3}"), timeout=60_000)
    before = text.inner_text()
    live.get_by_role("button", name="Stop", exact=True).locator("visible=true").click()
    page.wait_for_timeout(2000)
    after = text.inner_text()
    assert len(after) >= len(before.strip())
    # A new recording begins with an empty transcript.
    live.get_by_role("button", name="Record", exact=True).click()
    expect(text).not_to_contain_text(after.strip(), timeout=60_000)
