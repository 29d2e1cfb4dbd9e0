"""Runs that die, are told to stop or go wrong, and what is left of them."""

import json
import os
import signal
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
from transformers.utils import logging


logger = logging.get_logger(__name__)

MANIFEST_NAME = "manifest.json"
NONFINITE_LOSS_NAME = "nonfinite_loss.json"


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    The newest checkpoint whose files are all there and as long as they were when [`ManifestCallback`] saw them.

    Nothing that the `Trainer` itself writes tells as much: in a distributed run, other processes may still be writing
    their part when `trainer_state.json`, its last file, is there.

    Args:
        output_dir (`str` or `Path`): Of the `TrainingArguments` of the interrupted run.

    Returns:
        `str`, *optional*: For `resume_from_checkpoint`; `None` if there is no complete checkpoint. Others are skipped with
        a warning.
    """
    if not os.path.isdir(output_dir):
        return None
    for checkpoint in reversed(sort_checkpoints(str(output_dir))):
        flaw = _find_flaw(Path(checkpoint))
        if flaw is None:
            return checkpoint
        logger.warning(
            f"{checkpoint} is skipped: {flaw}. Pass it as `resume_from_checkpoint` if you know it to be complete."
        )
    return None


def _find_flaw(checkpoint: Path) -> str | None:
    manifest = checkpoint / MANIFEST_NAME
    if not manifest.is_file():
        return f"it has no {MANIFEST_NAME}, which is written when a checkpoint is complete"
    try:
        sizes = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return f"its {MANIFEST_NAME} is damaged"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


class ManifestCallback(TrainerCallback):
    """
    Writes the names and sizes of a checkpoint's files into it when all processes have written theirs, for
    [`last_complete_checkpoint`].

    Raises:
        `ValueError`: If `save_total_limit` is 1: the `Trainer` deletes the only complete checkpoint before the next one is
            known to be.

    Example:

    ```python
    >>> trainer.add_callback(ManifestCallback())
    >>> trainer.train(resume_from_checkpoint=last_complete_checkpoint(trainer.args.output_dir))
    ```
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if args.save_total_limit == 1:
            raise ValueError(
                "`save_total_limit` must be at least 2, so that a run that dies while it saves leaves a checkpoint to "
                "resume from."
            )
        if not args.should_save or not os.path.isdir(args.output_dir):
            return
        # Checkpoints ahead of where this run starts are of another run, or about to be overwritten.
        for checkpoint in sort_checkpoints(args.output_dir):
            if int(checkpoint.rpartition("-")[2]) > state.global_step:
                (Path(checkpoint) / MANIFEST_NAME).unlink(missing_ok=True)

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()
        if not args.should_save:
            return
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != MANIFEST_NAME)
        sizes = {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files}
        _write_json(checkpoint / MANIFEST_NAME, sizes)


class GracefulExit(TrainerCallback):
    """
    Ends training after the current step, with a checkpoint, when a process gets SIGTERM or SIGINT.

    All processes of a distributed run stop after the same step. An evaluation that is due is left out, for whoever sent
    the signal may not wait long; one that is under way is finished. A second SIGINT interrupts at once. Outside of
    training, signals do what they did before.

    `signal_number` tells which signal came. By convention, a program that a signal ended exits with 128 more, 143 for
    SIGTERM and 130 for SIGINT, so that a scheduler does not take the run for finished.

    Example:

    ```python
    >>> graceful_exit = GracefulExit()
    >>> trainer.add_callback(graceful_exit)
    >>> trainer.train()
    >>> if graceful_exit.signal_number is not None:
    ...     sys.exit(128 + graceful_exit.signal_number)
    ```
    """

    def __init__(self):
        self.signal_number: int | None = None
        self._received = 0
        self._previous = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.signal_number, self._received = None, 0
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Schedulers signal whole process groups. Workers of the data loader are started before the first step and inherit
        # what is blocked; one that died would end the run before it has saved.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def on_step_begin(self, args, state, control, **kwargs):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def on_train_end(self, args, state, control, **kwargs):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args, state, control, **kwargs):
        received = self._received
        if args.world_size > 1:
            # The processes are told at different steps.
            numbers = torch.tensor(received, device=args.device)
            torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
            received = int(numbers)
        if not received:
            return
        self.signal_number = received
        logger.warning(f"{signal.Signals(received).name} received: saving a checkpoint at step {state.global_step}.")
        control.should_training_stop = control.should_save = control.should_log = True
        control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **kwargs):
        # It is called in the middle of an epoch, too, when training stops there.
        if self.signal_number is not None:
            control.should_save = control.should_evaluate = False

    def _receive(self, number: int, frame) -> None:
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received = number


def stop_at_nonfinite_loss(trainer: Trainer, loss: torch.Tensor, outputs: dict, row_ids: list | None = None) -> None:
    """
    Refuse a loss that is NaN or infinite, before anything learns from it.

    What is known goes into `nonfinite_loss.json` in the output folder: the step, the process, the rows of the batch, the
    parts of the loss, and the parameters that already held a NaN or an infinity. If there are such, the fault is in an
    earlier step and not in the rows.

    Args:
        trainer ([`Trainer`]): That computes the loss.
        loss (`torch.Tensor`): Of a batch.
        outputs (`dict`): Of the model.
        row_ids (`list`, *optional*): `row` of each row of the batch.

    Raises:
        `FloatingPointError`: If `loss` is not finite.
    """
    if torch.isfinite(loss):
        return
    file = Path(trainer.args.output_dir) / NONFINITE_LOSS_NAME
    parts = {name: value for name, value in outputs.items() if name.endswith("_loss")}
    damaged = [name for name, parameter in trainer.model.named_parameters() if not torch.isfinite(parameter).all()]
    report = {
        "step": trainer.state.global_step,
        "process": trainer.args.process_index,
        "row_ids": row_ids,
        # As strings, since JSON has neither NaN nor infinity.
        "loss": {name: str(part.item()) for name, part in {"loss": loss, **parts}.items()},
        "nonfinite_parameters": damaged,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_json(file, report)
    cause = "parameters already were" if damaged else "see its `row_ids`"
    raise FloatingPointError(f"The loss is {loss.item()} after step {report['step']} ({cause}): {file}")


def _write_json(file: Path, content: dict) -> None:
    # A file appears under its name only when it is whole.
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(unfinished, file)


__all__ = ["GracefulExit", "ManifestCallback", "last_complete_checkpoint", "stop_at_nonfinite_loss"]
