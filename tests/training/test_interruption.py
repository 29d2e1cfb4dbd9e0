"""Runs that are killed, that receive a signal, or that fail."""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from speech_files import write_speech_dataset
from test_training import recipe, training_options
from tiny_models import compose
from transformers import Trainer, TrainerCallback, TrainingArguments

from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.training import program as train
from llm_asr.training.arguments import LlmAsrTrainingArguments
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.interruption import GracefulExit, ManifestCallback, last_complete_checkpoint
from llm_asr.training.trainer import LlmAsrTrainer


# An epoch has four steps, and checkpoints are inside epochs.
RUN = {
    "per_device_train_batch_size": 2,
    "max_steps": 42,
    "save_steps": 3,
    "logging_steps": 1,
    "dataloader_num_workers": 1,
    "lora_rank": 2,
    "freeze_text": True,
    "lora_dropout": 0.2,
    "do_eval": False,
}


@pytest.fixture(scope="module")
def dataset_file(tmp_path_factory):
    return write_speech_dataset(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def whole_run(parts, dataset_file, tmp_path_factory):
    """The folder of an uninterrupted run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    train.main([recipe(parts, dataset_file, folder, **RUN)])
    return folder


def assert_same_weights(run, expected, message=None):
    weights, expected = (load_file(folder / "model.safetensors") for folder in (run, expected))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items()), message


def start_and_signal(file, number, step):
    """Run `llm-asr train` in a separate process, and send a signal when it logs `step`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_asr", "train", str(file)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    with process:
        seen = 0
        for line in process.stdout:
            seen += "'grad_norm'" in line
            if seen == step:
                # Send the signal to the workers of the data loader too, as schedulers do.
                os.killpg(process.pid, number)
                break
        process.stdout.read()
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_run(
    parts, dataset_file, whole_run, tmp_path, number, status
):
    # The step is not seeded, so that runs of the test use different steps.
    step = random.SystemRandom().choice([step for step in range(4, 30) if step % 3 and step % 4])
    file = recipe(parts, dataset_file, tmp_path, **RUN)
    assert start_and_signal(file, number, step) == status, step
    assert not (tmp_path / "model.safetensors").exists()
    checkpoint = last_complete_checkpoint(tmp_path)
    saved = int(checkpoint.rpartition("-")[2])
    assert saved >= (step if number == signal.SIGTERM else step - 3), step
    train.main([file, "--resume_from_checkpoint", "true"])
    assert_same_weights(tmp_path, whole_run, (step, saved))


@pytest.mark.slow
def test_a_run_interrupted_after_its_last_step_takes_no_further_step(whole_run, tmp_path):
    """The run ends after 42 steps, inside an epoch."""
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    for name in ("model.safetensors", "trainer_state.json"):
        (run / name).unlink()
    train.main([str(run / "recipe.json"), "--output_dir", str(run), "--resume_from_checkpoint", "true"])
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 42
    assert_same_weights(run, whole_run)


def make_trainer(parts, dataset_file, folder, callbacks=(), trainer_class=Trainer, **options):
    model, processor = compose(parts, "cif")
    arguments_class = TrainingArguments if trainer_class is Trainer else LlmAsrTrainingArguments
    return trainer_class(
        model=model,
        args=arguments_class(**training_options(folder, save_steps=2, **options)),
        data_collator=LlmAsrDataCollator(processor, row_ids=trainer_class is LlmAsrTrainer),
        train_dataset=load_asr_dataset(str(dataset_file)),
        callbacks=list(callbacks),
    )


@pytest.fixture(scope="module")
def checkpoints(parts, dataset_file, tmp_path_factory):
    """A folder with the checkpoints 2 and 4. Their weights are in several files."""
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer = make_trainer(parts, dataset_file, folder, [ManifestCallback()])
    save = trainer.model.save_pretrained
    trainer.model.save_pretrained = lambda *args, **kwargs: save(*args, **{**kwargs, "max_shard_size": "100KB"})
    trainer.train()
    return folder


def test_a_checkpoint_with_a_damaged_file_is_not_resumed_from(checkpoints, tmp_path):
    assert last_complete_checkpoint(checkpoints) == str(checkpoints / "checkpoint-4")
    names = sorted(path.name for path in (checkpoints / "checkpoint-4").iterdir())
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "manifest.json"} <= set(names)
    assert sum(name.endswith(".safetensors") for name in names) > 1
    for name in names:
        for damage in ("delete", "truncate"):
            folder = tmp_path / damage / name
            shutil.copytree(checkpoints, folder)
            file = folder / "checkpoint-4" / name
            if damage == "delete":
                file.unlink()
            else:
                os.truncate(file, file.stat().st_size // 2)
            assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2"), (name, damage)
            shutil.rmtree(folder)


def test_no_complete_checkpoint(checkpoints, tmp_path):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    assert last_complete_checkpoint(tmp_path) is None
    shutil.copytree(checkpoints, tmp_path / "run")
    for manifest in (tmp_path / "run").glob("*/manifest.json"):
        manifest.unlink()
    assert last_complete_checkpoint(tmp_path / "run") is None


def test_later_checkpoints_of_another_run_are_ignored(parts, dataset_file, checkpoints, tmp_path):
    shutil.copytree(checkpoints, tmp_path / "run")
    trainer = make_trainer(parts, dataset_file, tmp_path / "run", [ManifestCallback()], max_steps=3)
    trainer.args.save_strategy = "no"
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert last_complete_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-2")


def test_a_single_checkpoint_is_refused(parts, dataset_file, tmp_path):
    trainer = make_trainer(parts, dataset_file, tmp_path, [ManifestCallback()], save_total_limit=1)
    with pytest.raises(ValueError, match="`save_total_limit` must be at least 2"):
        trainer.train()


class Signaller(TrainerCallback):
    """Sends signals to this process before the second step ends."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_training_saves_a_checkpoint_after_a_signal(parts, dataset_file, tmp_path, number, strategy):
    before = signal.getsignal(number)
    graceful_exit = GracefulExit()
    callbacks = [Signaller(number), graceful_exit, ManifestCallback()]
    options = {"per_device_train_batch_size": 2, "save_strategy": strategy, "logging_steps": 5}
    trainer = make_trainer(parts, dataset_file, tmp_path, callbacks, **options)
    with graceful_exit:
        trainer.train()
    assert graceful_exit.signal_number == number
    assert trainer.state.global_step == 2
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    # The losses since the last log are not lost.
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [2]
    assert signal.getsignal(number) == before


def test_a_second_interrupt_does_not_wait(parts, dataset_file, tmp_path):
    graceful_exit = GracefulExit()
    trainer = make_trainer(parts, dataset_file, tmp_path, [Signaller(signal.SIGINT, signal.SIGINT), graceful_exit])
    with pytest.raises(KeyboardInterrupt), graceful_exit:
        trainer.train()
    assert trainer.state.global_step == 1


class Failing(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise RuntimeError("a fault of the second step")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_exception_restores_the_signal_handlers(parts, dataset_file, tmp_path, num_workers):
    """Otherwise the process would ignore SIGTERM."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    graceful_exit = GracefulExit()
    options = {"dataloader_num_workers": num_workers}
    trainer = make_trainer(parts, dataset_file, tmp_path, [graceful_exit, Failing()], **options)
    with pytest.raises(RuntimeError, match="a fault of the second step") as error, graceful_exit:
        trainer.train()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before[:2]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    # The traceback still keeps the data loader of the workers alive.
    assert error.tb is not None
    assert not multiprocessing.active_children()


def test_signals_are_handled_in_a_block(parts, dataset_file, tmp_path):
    trainer = make_trainer(parts, dataset_file, tmp_path, [GracefulExit()])
    with pytest.raises(RuntimeError, match="in a `with` block"):
        trainer.train()


def run_program(file, **environment):
    command = [sys.executable, "-m", "llm_asr", "train", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.mark.parametrize("fault", ["a missing file", "a bad row", "a full disk"])
def test_an_error_in_training_ends_the_program_with_its_message(parts, tmp_path, fault):
    """The run has workers. Without the fix, Python would wait endlessly for them, because they block SIGTERM."""
    dataset_file = write_speech_dataset(tmp_path / "speech")
    run = tmp_path / "run"
    if fault == "a missing file":
        (tmp_path / "speech/5.wav").unlink()
        message = "Dataset row 5: `audio` file"
    elif fault == "a bad row":
        rows = [json.loads(line) for line in dataset_file.read_text().splitlines()]
        rows[6]["language"] = "xx"
        dataset_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        message = "Dataset row 6: `language` 'xx' is not among"
    else:
        (run / "checkpoint-2").mkdir(parents=True)
        (run / "checkpoint-2/optimizer.pt").symlink_to("/dev/full")
        message = f"No space left on device; make room and resume: '{run}'"
    options = {"dataloader_num_workers": 2, "save_steps": 2, "max_steps": 8, "do_eval": False}
    ended = run_program(recipe(parts, dataset_file, run, **options))
    assert ended.returncode == 1, ended.stderr
    assert message in ended.stderr


def test_training_without_a_signal_is_completed(parts, dataset_file, tmp_path):
    graceful_exit = GracefulExit()
    trainer = make_trainer(parts, dataset_file, tmp_path, [graceful_exit])
    with graceful_exit:
        trainer.train()
    assert graceful_exit.signal_number is None
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_no_weight(parts, dataset_file, tmp_path, value):
    trainer = make_trainer(
        parts, dataset_file, tmp_path, trainer_class=LlmAsrTrainer, per_device_train_batch_size=2, warmup_steps=0
    )
    forward, batches, weights = trainer.model.forward, [], []
    collate = trainer.data_collator

    def collate_and_remember(rows):
        batches.append([row["row"] for row in rows])
        return collate(rows)

    def fail_in_the_third_step(**inputs):
        outputs = forward(**inputs)
        if trainer.state.global_step == 2:
            weights.extend(parameter.clone() for parameter in trainer.model.parameters())
            outputs["loss"] = outputs["loss"] * value
            outputs["lm_loss"] = outputs["lm_loss"] * value
        return outputs

    trainer.data_collator = collate_and_remember
    trainer.model.forward = fail_in_the_third_step
    with pytest.raises(FloatingPointError, match=r"nonfinite_loss\.json"):
        trainer.train()
    report = json.loads((tmp_path / "nonfinite_loss.json").read_text())
    assert report["step"] == 2
    assert report["row_ids"] == batches[2]
    assert report["loss"]["loss"] == report["loss"]["lm_loss"] == str(value)
    assert math.isfinite(float(report["loss"]["quantity_loss"]))
    assert report["nonfinite_parameters"] == []
    assert all(map(torch.equal, weights, trainer.model.parameters()))


def test_weights_that_are_not_finite_before_training_are_named(parts, dataset_file, tmp_path):
    trainer = make_trainer(parts, dataset_file, tmp_path, trainer_class=LlmAsrTrainer)
    parameter = trainer.model.model.projector.mlp
    name, parameter = next(iter(parameter.named_parameters()))
    parameter.data.view(-1)[0] = math.nan
    with pytest.raises(FloatingPointError, match="parameters were not finite before"):
        trainer.train()
    report = json.loads((tmp_path / "nonfinite_loss.json").read_text())
    assert report["nonfinite_parameters"] == [f"model.projector.mlp.{name}"]
