"""Complete checkpoints of killed runs, graceful exit on signals, and reports of losses that are not finite."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
from transformers.utils import logging

from ..atomic_writing import write_text


logger = logging.get_logger(__name__)

MANIFEST_NAME = "manifest.json"
NONFINITE_LOSS_NAME = "nonfinite_loss.json"


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """
    Find the newest checkpoint whose files all have the sizes that [`ManifestCallback`] recorded.

    The `Trainer`'s own files do not show whether a checkpoint is complete. In a distributed run, other processes may still be
    writing when the main process has written its last file, `trainer_state.json`.

    Args:
        output_dir (`str` or `Path`): `output_dir` of the interrupted run.

    Returns:
        `str`, *optional*: Value for `resume_from_checkpoint`; `None` if there is no complete checkpoint. Incomplete
        checkpoints are skipped with a warning.
    """
    if not os.path.isdir(output_dir):
        return None
    for checkpoint in reversed(sort_checkpoints(str(output_dir))):
        flaw = _find_flaw(Path(checkpoint))
        if flaw is None:
            return checkpoint
        logger.warning(
            f"{checkpoint} is skipped: {flaw}. If you are sure that it is complete, pass it as `resume_from_checkpoint`."
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
    Writes a manifest with the names and sizes of a checkpoint's files after all processes have written their files.
    [`last_complete_checkpoint`] reads it.

    Raises:
        `ValueError`: If `save_total_limit` is 1. The `Trainer` would delete the only complete checkpoint before the next one
            has a manifest.

    Example:

    ```python
    >>> trainer.add_callback(ManifestCallback())
    >>> trainer.train(resume_from_checkpoint=last_complete_checkpoint(trainer.args.output_dir))
    ```
    """

    @staticmethod
    def check_arguments(args: TrainingArguments) -> None:
        """Raise the `ValueError` before training starts, for programs that compute something first."""
        if args.save_total_limit == 1:
            raise ValueError(
                "`save_total_limit` must be at least 2, so that a run that is killed while it saves leaves a complete "
                "checkpoint."
            )

    def on_train_begin(self, args, state, control, **kwargs):
        self.check_arguments(args)
        if not args.should_save or not os.path.isdir(args.output_dir):
            return
        # Checkpoints with more steps than the start of this run belong to another run or will be overwritten.
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
    Saves a checkpoint and ends training after the current step when a process receives SIGTERM or SIGINT.

    All processes of a distributed run stop after the same step. A running evaluation is finished. A due evaluation is skipped,
    because a scheduler may kill the run soon. A second SIGINT raises `KeyboardInterrupt` immediately. Leaving the `with` block
    restores the previous signal handlers. If an exception leaves the block, workers of the data loader are killed, because the
    program could not exit otherwise.

    `signal_number` is the number of the received signal, or `None`. By convention, a program that a signal has ended exits with
    128 plus this number: 143 for SIGTERM and 130 for SIGINT. A scheduler then knows that the run is not finished.

    Example:

    ```python
    >>> graceful_exit = GracefulExit()
    >>> trainer.add_callback(graceful_exit)
    >>> with graceful_exit:
    ...     trainer.train()
    >>> if graceful_exit.signal_number is not None:
    ...     sys.exit(128 + graceful_exit.signal_number)
    ```
    """

    def __init__(self):
        self.signal_number: int | None = None
        self._received = 0
        self._previous = {}
        self._others: set[multiprocessing.process.BaseProcess] = set()

    def __enter__(self) -> "GracefulExit":
        self.signal_number, self._received = None, 0
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind, *exception) -> None:
        if kind is not None:
            self._end_workers()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if not self._previous:
            raise RuntimeError("`GracefulExit` handles signals in a `with` block; call `trainer.train()` inside it.")

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Schedulers send signals to whole process groups. A killed worker of the data loader would end the run before it has
        # saved. Workers start before the first step and inherit the blocked signals.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        self._others = set(multiprocessing.active_children())

    def on_step_begin(self, args, state, control, **kwargs):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _end_workers(self) -> None:
        """
        Kill the workers that were started while SIGTERM was blocked. At exit Python sends SIGTERM to the workers and waits for
        them, which would never end while the exception's traceback keeps their data loader alive.
        """
        # PyTorch's handler would raise a further exception for each worker.
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in set(multiprocessing.active_children()) - self._others:
            if worker.daemon:
                worker.kill()
                worker.join()
        signal.signal(signal.SIGCHLD, handler)

    def on_step_end(self, args, state, control, **kwargs):
        received = self._received
        if args.world_size > 1:
            # Processes may receive the signal at different steps.
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
        # The `Trainer` also calls this when training stops inside an epoch.
        if self.signal_number is not None:
            control.should_save = control.should_evaluate = False

    def _receive(self, number: int, frame) -> None:
        if number == signal.SIGINT and self._received:
            raise KeyboardInterrupt
        self._received = number


def stop_at_nonfinite_loss(trainer: Trainer, loss: torch.Tensor, outputs: dict, row_ids: list | None = None) -> None:
    """
    Stop training before the backward pass if a loss is NaN or infinite.

    The function writes `nonfinite_loss.json` to the output folder, with the step, the process, the rows of the batch, the
    parts of the loss, and the parameters that contain NaN or infinity. If there are such parameters, an earlier step is the
    cause, and not the rows of the batch.

    Args:
        trainer ([`Trainer`]): The trainer that computed the loss.
        loss (`torch.Tensor`): Loss of a batch.
        outputs (`dict`): Outputs of the model.
        row_ids (`list`, *optional*): `row` of each row of the batch.

    Raises:
        `FloatingPointError`: If `loss` is not finite.
    """
    if torch.isfinite(loss):
        return
    file = Path(str(trainer.args.output_dir)) / NONFINITE_LOSS_NAME
    parts = {name: value for name, value in outputs.items() if name.endswith("_loss")}
    model: Any = trainer.model
    damaged = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    report = {
        "step": trainer.state.global_step,
        "process": trainer.args.process_index,
        "row_ids": row_ids,
        # JSON has neither NaN nor infinity, so write strings.
        "loss": {name: str(part.item()) for name, part in {"loss": loss, **parts}.items()},
        "nonfinite_parameters": damaged,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_json(file, report)
    cause = "parameters were not finite before" if damaged else "`row_ids` names the rows of the batch"
    raise FloatingPointError(f"The loss is {loss.item()} after step {report['step']} ({cause}); see {file}")


def _write_json(file: Path, content: dict) -> None:
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False))


__all__ = ["GracefulExit", "ManifestCallback", "last_complete_checkpoint", "stop_at_nonfinite_loss"]
