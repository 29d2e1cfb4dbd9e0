"""Runs all cells of the notebooks on tiny models and small data."""

import json
from pathlib import Path

import nbformat
import pytest
import soundfile
from nbclient import NotebookClient
from speech_files import write_speech_dataset
from tiny_models import PROJECTOR_KWARGS, compose


NOTEBOOKS = Path(__file__).parents[2] / "examples/notebooks"


def run_notebook(name: str, folder: Path, parameters: dict) -> nbformat.NotebookNode:
    """Run a notebook with `parameters` instead of the readers' settings, and return it with its outputs."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (place,) = [index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    defined = {}
    exec(notebook.cells[place].source, defined)
    # An unknown parameter would have no effect.
    assert set(parameters) <= set(defined)
    source = "\n".join(f"{parameter} = {value!r}" for parameter, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode, word: str) -> str:
    """The outputs of the cells whose source contains `word`."""
    found = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code" and word in cell.source
        for output in cell.outputs
    ]
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in found)


@pytest.fixture
def one_thread(monkeypatch):
    """Limits the notebook's kernel to one thread."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.mark.parametrize("name", ["quick_start", "fine_tuning"])
def test_notebooks_are_stored_without_outputs(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)


def test_the_quick_start(parts, recordings, tmp_path, one_thread):
    model, processor = compose(parts, "moe_cif")
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    soundfile.write(tmp_path / "recording.wav", recordings[2], 16000)
    models = {"AUDIO_MODEL": parts["whisper"], "TEXT_MODEL": parts["qwen2"]}
    notebook = run_notebook("quick_start", tmp_path, {"CHECKPOINT": "checkpoint", **models})
    assert "'text'" in outputs(notebook, "transcriber(RECORDING, language")
    assert " –  " in outputs(notebook, 'return_timestamps="word"')
    assert "-->" in outputs(notebook, "to_srt")
    assert "audio_tower" in outputs(notebook, "new_model")


@pytest.mark.slow
def test_fine_tuning(parts, tmp_path, one_thread):
    write_speech_dataset(tmp_path, 8).rename(tmp_path / "train.jsonl")
    for name in ("validation", "test"):
        rows = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)[:2]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    parameters = {
        "AUDIO_MODEL": parts["whisper"],
        "TEXT_MODEL": parts["qwen2"],
        "PROJECTOR": {"projector_type": "conv", **PROJECTOR_KWARGS},
        "PROJECTOR_EPOCHS": 2,
        "LORA_EPOCHS": 1,
        "SECONDS_IN_A_BATCH": 4,
        "OUTPUT": "runs",
    }
    notebook = run_notebook("fine_tuning", tmp_path, parameters)
    assert "train: 8 recordings" in outputs(notebook, "read_duration")
    assert "'text'" in outputs(notebook, "transcriber(load_asr_dataset")
    report = json.loads((tmp_path / "runs/test.json").read_text())
    assert {"en", "all"} <= set(report["error_rates"])
