"""What a training run was made of, kept beside its checkpoint."""

import json
import os
import time
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback
from transformers.modelcard import extract_hyperparameters_from_trainer

from .arguments import DataArguments, ModelArguments


RUN_RECORD_NAME = "training_run.json"
# What `extract_hyperparameters_from_trainer` leaves out, if it is set.
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
    Writes `training_run.json` into the output folder, with every checkpoint and at the end: what the run started from and
    learned from, its options, hardware, hours and versions. Model cards are made from it.

    Hours of a run that was resumed in the same output folder are those of all its sessions up to their last checkpoint.

    Args:
        trainer ([`Trainer`]): That trains.
        model_args ([`ModelArguments`]), data_args ([`DataArguments`]): Of the run. Options with their defaults are left out.

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
        file = Path(args.output_dir) / RUN_RECORD_NAME
        file.parent.mkdir(parents=True, exist_ok=True)
        # A file appears under its name only when it is whole.
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        unfinished.replace(file)


def describe_hardware(args) -> str:
    """Number and kind of the devices that train."""
    if args.device.type == "cuda":
        device = torch.cuda.get_device_name(args.device)
    elif args.device.type == "cpu":
        device = f"CPU with {os.cpu_count()} cores"
    else:
        device = args.device.type
    return f"{args.world_size * max(args.n_gpu, 1)} × {device}"


def _locate(name: str) -> dict:
    """A name with whether it is of the Hub, which only who could load it knows: the folder may be elsewhere later."""
    return {"name": name, "on_hub": not os.path.exists(name)}


def _list_datasets(data_args: DataArguments) -> list[dict]:
    if data_args.train_datasets:
        return [
            {**_locate(spec["dataset"]), "config": spec.get("name"), "split": spec.get("split", "train")}
            for spec in data_args.train_datasets
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
