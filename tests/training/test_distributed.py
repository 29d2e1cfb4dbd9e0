"""Training on two processes equals training on one process with doubled batches. Either can resume the other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from speech_files import write_speech_dataset
from test_training import recipe
from tiny_models import PROJECTOR_KWARGS

from llm_asr.training import program as train


# Trains projector, draft head and LoRA with all parts of the loss. An epoch has two steps, and a checkpoint is inside an epoch.
RUN = {
    "projector": {
        **PROJECTOR_KWARGS,
        "draft_head": True,
        "router_aux_loss_coef": 1.0,
        "router_z_loss_coef": 0.1,
        "router_bias_update_rate": 0.01,
    },
    "freeze_text": True,
    "lora_rank": 2,
    "lora_dropout": 0.0,
    "max_steps": 6,
    "save_steps": 3,
    "logging_steps": 1,
    "learning_rate": 1e-2,
}
LOSSES = ("loss", "lm_loss", "quantity_loss", "draft_loss", "router_aux_loss", "router_z_loss", "length_error")
BATCH_SIZE = 8
RECIPES = Path(__file__).parents[2] / "examples/recipes/accelerate"


def launch(script: str, *arguments: str) -> None:
    """Run a script on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*command, str(Path(__file__).with_name(script)), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def dataset_file(tmp_path_factory):
    return write_speech_dataset(tmp_path_factory.mktemp("speech"), size=2 * BATCH_SIZE)


@pytest.fixture(scope="module")
def runs(parts, dataset_file, tmp_path_factory):
    """Folders of finished runs, by number of processes and number of micro-batches per step."""
    torch.set_num_threads(1)
    folders, recipes = {}, {}
    for key in [(processes, steps) for processes in (1, 2) for steps in (1, 2)]:
        folders[key] = tmp_path_factory.mktemp("run")
        batches = {
            "per_device_train_batch_size": BATCH_SIZE // key[0] // key[1],
            "gradient_accumulation_steps": key[1],
        }
        recipes[key] = recipe(parts, dataset_file, folders[key], **RUN, **batches)
    launch("train_distributed.py", recipes[2, 1], recipes[2, 2])
    for steps in (1, 2):
        train.main([recipes[1, steps]])
    return folders


def read_losses(folder: Path) -> torch.Tensor:
    logs: dict[int, dict] = {}
    for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]:
        logs.setdefault(entry["step"], {}).update(entry)
    return torch.tensor([[logs[step][name] for name in LOSSES] for step in range(1, RUN["max_steps"] + 1)])


def assert_same_end(folder: Path, expected: Path) -> None:
    for name in ("adapter/adapter_model.safetensors", "model.safetensors"):
        torch.testing.assert_close(load_file(folder / name), load_file(expected / name), rtol=1e-4, atol=1e-4)
    found, wanted = (json.loads((each / "eval_results.json").read_text()) for each in (folder, expected))
    assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-4)
    for name in ("eval_wer", "eval_cer", "eval_wer_es"):
        assert found[name] == wanted[name]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_processes_equal_one_with_a_batch_twice_as_large(runs, accumulation_steps):
    one, two = (runs[processes, accumulation_steps] for processes in (1, 2))
    # The second process wrote its own random state.
    assert (two / "checkpoint-3" / "rng_state_1.pth").is_file()
    torch.testing.assert_close(read_losses(two), read_losses(one), rtol=1e-4, atol=1e-4)
    assert_same_end(two, one)
    bias = load_file(two / "model.safetensors")["model.projector.moe.balance.e_score_correction_bias"]
    assert bias.any()


@pytest.mark.slow
def test_one_process_resumes_from_the_checkpoint_of_two(runs, tmp_path):
    """The checkpoint is inside an epoch, and all trained parts resume."""
    checkpoint = "checkpoint-3"
    weights = load_file(runs[2, 1] / checkpoint / "adapter_model.safetensors")
    for part in ("lora_A", "lora_B", "projector.cif", "projector.moe", "draft_head"):
        assert any(part in name for name in weights), part
    shutil.copytree(runs[2, 1] / checkpoint, tmp_path / checkpoint)
    shutil.copy(runs[1, 1] / "recipe.json", tmp_path)
    file = str(tmp_path / "recipe.json")
    train.main([file, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "true"])
    torch.testing.assert_close(read_losses(tmp_path), read_losses(runs[2, 1]), rtol=1e-4, atol=1e-4)
    assert_same_end(tmp_path, runs[2, 1])


@pytest.mark.slow
def test_one_process_evaluates_the_model_of_two(runs, tmp_path):
    shutil.copy(runs[1, 1] / "recipe.json", tmp_path)
    options = json.loads((tmp_path / "recipe.json").read_text())
    for name in ("audio_model", "text_model", "lora_rank", "do_train"):
        del options[name]
    options |= {"model": str(runs[2, 1]), "output_dir": str(tmp_path)}
    (tmp_path / "recipe.json").write_text(json.dumps(options))
    train.main([str(tmp_path / "recipe.json")])
    found, wanted = (json.loads((each / "eval_results.json").read_text()) for each in (tmp_path, runs[2, 1]))
    assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-4)


@pytest.mark.slow
def test_the_recipe_of_zero2_gives_the_same_weights(parts, dataset_file, runs, tmp_path, monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    options = {**RUN, "per_device_train_batch_size": BATCH_SIZE // 2, "deepspeed": str(RECIPES / "zero2.json")}
    launch("train_distributed.py", recipe(parts, dataset_file, tmp_path, **options))
    assert (tmp_path / "checkpoint-3" / "zero_to_fp32.py").is_file()
    torch.testing.assert_close(read_losses(tmp_path), read_losses(runs[1, 1]), rtol=1e-4, atol=1e-4)
    assert_same_end(tmp_path, runs[1, 1])


@pytest.mark.slow
def test_the_recipe_of_fsdp2_shards_everything_and_gives_the_same_weights(parts, tmp_path):
    launch("shard_lora.py", str(tmp_path), parts["whisper"], parts["qwen2"])
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("sharded", "whole"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_processes_divide_the_feature_cache(dataset_file, tmp_path):
    """Otherwise each process would encode all recordings."""
    launch("cache_features.py", str(dataset_file), str(tmp_path))
    counts = [int((tmp_path / f"{rank}.txt").read_text()) for rank in range(2)]
    assert sorted(counts) == [BATCH_SIZE, BATCH_SIZE]
    bounded = [int((tmp_path / f"bounded-{rank}.txt").read_text()) for rank in range(2)]
    assert bounded == [2 * BATCH_SIZE, 0]
