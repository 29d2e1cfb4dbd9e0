"""Curves of `examples/plot_training.py`."""

import json

import plot_training
import pytest


HISTORY = [
    {"step": 1, "epoch": 0.5, "loss": 3.0, "lm_loss": 2.5, "learning_rate": 1e-3, "learning_rate_projector": 1e-3},
    {"step": 1, "length_error": 40.0, "expert_entropy": 0.9},
    {
        "step": 2,
        "eval_loss": 2.0,
        "eval_wer": 90.0,
        "eval_wer_en": 80.0,
        "eval_wer_es": 100.0,
    },
    {"step": 2, "loss": 1.0, "lm_loss": 0.5},
]


def write_state(folder, history, step=2):
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"global_step": step, "log_history": history})
    (folder / "trainer_state.json").write_text(content)
    return content


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def test_each_logged_quantity_has_a_panel(tmp_path):
    figure = plot_training.plot_curves({"run": HISTORY}, tmp_path / "new" / "curves.png")
    assert titles(figure) == ["loss", "lm_loss", "learning rate", "WER (%)", "CIF length error (%)", "expert entropy"]
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    wer = figure.axes[titles(figure).index("WER (%)")]
    assert [text.get_text() for text in wer.get_legend().get_texts()] == ["WER (%)", "en", "es"]
    assert [line.get_ydata().tolist() for line in wer.lines] == [[90.0], [80.0], [100.0]]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1.0, 3.0], [2.0, 1.0]]


def test_runs_share_panels(tmp_path):
    figure = plot_training.plot_curves({"a": HISTORY, "b": HISTORY[:1]}, tmp_path / "curves.png")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["a", "a, eval", "b"]


def test_the_complete_state_with_the_most_steps_is_read(tmp_path):
    write_state(tmp_path / "checkpoint-9", HISTORY[:1], step=9)
    write_state(tmp_path / "checkpoint-10", HISTORY, step=10)
    half = write_state(tmp_path / "checkpoint-11", HISTORY, step=11)[:-20]
    (tmp_path / "checkpoint-11" / "trainer_state.json").write_text(half)
    assert plot_training.read_history(tmp_path) == HISTORY
    write_state(tmp_path, HISTORY[:2], step=12)
    assert plot_training.read_history(tmp_path) == HISTORY[:2]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pass the `output_dir` of a run"):
        plot_training.read_history(tmp_path)
    with pytest.raises(ValueError, match="nothing to draw: the logs of run"):
        plot_training.plot_curves({"run": []}, tmp_path / "curves.png")
