"""Writes a record of a training run beside its checkpoint."""

import json
import os
import time
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.modelcard import extract_hyperparameters_from_trainer

from ..atomic_writing import write_text
from .arguments import DataArguments, ModelArguments


RUN_RECORD_NAME = "training_run.json"
# Arguments that `extract_hyperparameters_from_trainer` leaves out. They are recorded if they are set.
FURTHER_ARGUMENTS = (
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "audio_learning_rate",
    "text_learning_rate",
    "max_batch_seconds",
)
PACKAGES = ("llm-asr", "torch", "transformers", "peft", "datasets")


class RunRecord(TrainerCallback):
    """
    Writes `training_run.json` to the output folder with every checkpoint and at the end. The file records the initial
    checkpoints, the datasets, options, hardware, hours and versions. Model cards use it.

    The hours of a resumed run include all sessions in the same output folder, each up to its last checkpoint.

    Args:
        trainer ([`Trainer`]): The trainer.
        model_args ([`ModelArguments`]), data_args ([`DataArguments`]): Arguments of the run. The record leaves out options
            with their default values.

    Example:

    ```python
    >>> trainer.add_callback(RunRecord(trainer, model_args, data_args))
    ```
    """

    def __init__(self, trainer: Trainer, model_args: ModelArguments, data_args: DataArguments):
        self.trainer = trainer
        starts = {
            "model": model_args.model,
            "audio_tower": model_args.audio_model,
            "language_model": model_args.text_model,
        }
        self.made_from = {
            "started_from": {part: _locate(name) for part, name in starts.items() if name is not None},
            "datasets": _list_datasets(data_args),
            "options": {**_changed(model_args), **_changed(data_args)},
        }
        self.earlier_hours = 0.0
        self.started = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        file = Path(args.output_dir) / RUN_RECORD_NAME
        if state.global_step and file.is_file():
            self.earlier_hours = json.loads(file.read_text(encoding="utf-8"))["hours"]
        self.started = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        self._write(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._write(args, state)

    def _write(self, args, state) -> None:
        if not state.is_world_process_zero:
            return
        record = {
            **self.made_from,
            "arguments": {
                **extract_hyperparameters_from_trainer(self.trainer),
                **{name: value for name, value in vars(args).items() if name in FURTHER_ARGUMENTS and value},
            },
            "steps": state.global_step,
            "epochs": state.epoch,
            "hardware": describe_hardware(args),
            "hours": self.earlier_hours + (time.perf_counter() - self.started) / 3600,
            "versions": {package: version(package) for package in PACKAGES},
        }
        text = json.dumps(record, indent=1, ensure_ascii=False, default=str)
        write_text(Path(args.output_dir) / RUN_RECORD_NAME, text + "\n")


def describe_hardware(args) -> str:
    """Number and name of the devices."""
    if args.device.type == "cuda":
        device = torch.cuda.get_device_name(args.device)
    elif args.device.type == "cpu":
        device = f"CPU with {os.cpu_count()} cores"
    else:
        device = args.device.type
    return f"{args.world_size * max(args.n_gpu, 1)} × {device}"


def _locate(name: str) -> dict:
    """Record a name and whether it is on the Hub. Only this run can know, because a local folder may be moved later."""
    return {"name": name, "on_hub": not os.path.exists(name)}


def _list_datasets(data_args: DataArguments) -> list[dict]:
    # `DataArguments` has parsed the list. Its type is that of the command line.
    train_datasets: Any = data_args.train_datasets
    if train_datasets:
        return [
            {**_locate(spec["dataset"]), "config": spec.get("name"), "split": spec.get("split", "train")}
            for spec in train_datasets
        ]
    if data_args.train_dataset is None:
        return []
    return [{**_locate(data_args.train_dataset), "config": data_args.dataset_name, "split": data_args.train_split}]


def _changed(arguments: ModelArguments | DataArguments) -> dict:
    """Options that differ from their defaults."""
    found = {}
    for field in fields(arguments):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = vars(arguments)[field.name]
        if value != default:
            found[field.name] = value
    return found


__all__ = ["RUN_RECORD_NAME", "RunRecord"]
