"""The benchmark of live transcription: what it counts, and its command with a tiny checkpoint."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from speech_files import write_speech_dataset
from tiny_models import compose

from llm_asr.live.events import LiveEvent, LiveSegment, LiveWord


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "live.py"


@pytest.fixture(scope="module")
def live():
    return runpy.run_path(str(SCRIPT))


def event(words, segment_words=None):
    segment = None
    if segment_words is not None:
        words_of_segment = tuple(LiveWord(word, None, None) for word in segment_words.split())
        segment = LiveSegment(0.0, 1.0, segment_words, None, words_of_segment)
    return LiveEvent(words, tuple(LiveWord(word, None, None) for word in words.split()), "", None, 0.0, segment)


def test_delays_are_those_of_recognised_words_whose_end_is_known(live):
    class Recording:
        words = ["one", "two", "three", "four"]
        ends = [1.0, float("nan"), 3.0, 4.0]

    delays = live["measure_delays"](Recording, [(1.5, event("one two")), (5.0, event("tree four"))])
    np.testing.assert_allclose(delays, [0.5, 1.0])


def test_committed_words_that_the_finished_segment_lacks_are_counted(live):
    events = [(1.0, event("one two")), (2.0, event("three", "one too three")), (3.0, event("four", "four"))]
    assert live["count_taken_back"](events) == 1


def test_the_command_measures_all_parts_with_a_checkpoint(parts, tmp_path, monkeypatch, capsys):
    options = {"encoder_attention": "chunked", "encoder_chunk_s": 0.5, "encoder_left_context_s": 1.0}
    model, processor = compose(parts, "moe_cif", **options)
    model.generation_config.max_new_tokens = 6
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    dataset = write_speech_dataset(tmp_path / "speech", size=4)
    output = tmp_path / "live.json"
    command = ["live.py", "--model", tmp_path / "model", "--dataset", dataset, "--output", output, "--latencies", "1"]
    command += ["--minutes", "2", "--silent-minutes", "0.1", "--streams", "2", "--threads", "1"]
    monkeypatch.setattr("sys.argv", [str(word) for word in command])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    figures = json.loads(output.read_text())
    assert [row["encoder"] for row in figures["accuracy"]] == ["files", "reencode", "cached"]
    assert len(figures["hour"]["all"]) == 2
    assert figures["silence"][0]["text"] == ""
    assert figures["streams"][0]["streams"] == 2
    assert "| cached | 1.0 |" in capsys.readouterr().out
