"""
Compares projectors over several seeds, with the same data in the same order, optimiser, schedule, initial weights of shared
parts, prompts and decoding.

    python studies/projectors/compare.py studies/projectors/recorded.yaml                 # all but the ablations
    python studies/projectors/compare.py studies/projectors/recorded.yaml ablate report
    python studies/projectors/compare.py studies/projectors/recorded.yaml report          # from the manifests

Finished runs are not repeated, and a stopped run continues from its checkpoint. Several processes, each on one GPU
(`CUDA_VISIBLE_DEVICES=1 python …`), share the runs. Stages:

    prepare   create the data, and run the frozen encoder over it
    search    choose a learning rate, and possibly a loudness, for each arm on the validation set
    train     train and test each arm with each seed
    ablate    train and test the ablations, with the tuning of the arms in `like`
    report    check that runs differ only in the projector, and write statistics, tables and plots
    pack      move all hypotheses into one archive
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from comparison.experiment import Experiment, Tuning, load_experiment
from comparison.hypotheses import pack_hypotheses
from comparison.manifest import write_json
from comparison.report import make_report, read_manifests
from comparison.running import Data, Interrupted, load_data, run


STAGES = ("prepare", "search", "train", "ablate", "report", "pack")
DEFAULT_STAGES = ("prepare", "search", "train", "report")


def slug(text: str) -> str:
    """Convert a name to a part of a file name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-")


class Comparison:
    """
    Runs the stages of an experiment and keeps track of finished runs.

    Args:
        experiment ([`Experiment`]): The experiment.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self._data: Data | None = None

    @property
    def data(self) -> Data:
        if self._data is None:
            with self._lock("data"):
                self._data = load_data(self.experiment)
        return self._data

    def do(self, stages: list[str]) -> None:
        for stage in STAGES:
            if stage in stages:
                print(f"== {stage}", flush=True)
                getattr(self, stage)()

    def pack(self) -> None:
        """Move the hypotheses into one archive. `report` reads them from it."""
        pack_hypotheses(self.experiment.results)

    def prepare(self) -> None:
        with self._lock("data"):
            for entry in self.experiment.prepare:
                if not Path(entry["creates"]).exists():
                    print(f"   {entry['command']}", flush=True)
                    subprocess.run([sys.executable, *shlex.split(entry["command"])], check=True)
        rows = ", ".join(f"{name} {len(dataset)}" for name, dataset in self.data.datasets.items())
        print(f"   {rows} recordings", flush=True)

    def search(self) -> None:
        experiment = self.experiment
        tasks = [(arm, experiment.search_seed, tuning) for arm in experiment.arms for tuning in experiment.tunings]
        self._run_all("search", tasks)
        for arm in experiment.arms:
            print(f"   {arm}: {self.best_tuning(arm)}", flush=True)

    def train(self) -> None:
        experiment = self.experiment
        # Train all arms with one seed before the next seed, so that an unfinished comparison has all arms for some seeds.
        self._run_all("train", [(arm, seed, None) for seed in experiment.seeds for arm in experiment.arms])

    def ablate(self) -> None:
        experiment = self.experiment
        self._run_all(
            "ablate", [(arm, seed, None) for seed in experiment.ablation_seeds for arm in experiment.ablations]
        )

    def report(self) -> None:
        with self._lock("report"):
            make_report(self.experiment)
        print(f"   {self.experiment.results / 'report.md'}", flush=True)

    def best_tuning(self, arm: str) -> Tuning:
        """The tuning of an arm or an ablation with the lowest WER on the validation set."""
        tuned_as = self.experiment.arm(arm).tuned_as
        # A run that diverged has no WER.
        found = {
            Tuning.of(manifest): manifest["results"].get("validation", {}).get("eval_wer", math.inf)
            for manifest in read_manifests(self.experiment.results / "search")
            if manifest["arm"] == tuned_as
        }
        missing = [str(tuning) for tuning in self.experiment.tunings if tuning not in found]
        if missing:
            raise ValueError(f"{tuned_as!r} has no runs at learning rates {missing}; run the stage `search` first.")
        # For equal error rates, the smaller learning rate wins.
        best = min(self.experiment.tunings, key=lambda tuning: (found[tuning], tuning.learning_rate))
        if found[best] == math.inf:
            raise ValueError(f"{tuned_as!r} diverged at all `learning_rates`; add smaller ones.")
        return best

    def _lock(self, name: str, wait: bool = True):
        return holding(self.experiment.runs / f"{name}.lock", wait)

    def _run_all(self, stage: str, tasks: list[tuple[str, int, Tuning | None]]) -> None:
        """Run all tasks that have no manifest yet. A tuning of `None` means the best one."""
        todo = [task for task in tasks if not self._is_done(stage, *task)]
        print(f"   {len(tasks) - len(todo)} of {len(tasks)} runs are done", flush=True)
        started = time.perf_counter()
        # First skip tasks of other processes. Then wait for these tasks, because another process may not finish them.
        for wait in (False, True):
            for task in todo:
                with self._lock(self._name(stage, *task), wait) as free:
                    if not free or self._is_done(stage, *task):
                        continue
                    outcome = self._run(stage, *task)
                left = sum(not self._is_done(stage, *other) for other in todo)
                minutes = (time.perf_counter() - started) / (len(todo) - left) * left / 60
                print(
                    f"   [{len(tasks) - left}/{len(tasks)}] {outcome}; {stage} needs about {minutes:.0f} min more",
                    flush=True,
                )

    def _name(self, stage: str, arm: str, seed: int, tuning: Tuning | None) -> str:
        return f"{stage}/{slug(arm)}-{seed}" + ("" if tuning is None else f"-{slug(str(tuning))}")

    def _is_done(self, stage: str, arm: str, seed: int, tuning: Tuning | None) -> bool:
        """
        Whether a run has its manifest.

        Raises:
            `ValueError`: If the manifest belongs to an arm with other options, or to a tuning that is no longer the best.
        """
        manifest = self.experiment.results / f"{self._name(stage, arm, seed, tuning)}.json"
        if not manifest.exists():
            return False
        finished = json.loads(manifest.read_text(encoding="utf-8"))
        self.experiment.check_run(finished)
        if tuning is None and Tuning.of(finished) != self.best_tuning(arm):
            raise ValueError(
                f"{manifest} has the learning rate {Tuning.of(finished)}, but the best one is now {self.best_tuning(arm)}; "
                f"remove the manifests of `{arm}` to train it again, or remove the added values from `learning_rates` and "
                "`loudness`."
            )
        return True

    def _run(self, stage: str, arm: str, seed: int, tuning: Tuning | None) -> str:
        """Train and test one arm, and return a description of the outcome."""
        name = self._name(stage, arm, seed, tuning)
        tuning = self.best_tuning(arm) if tuning is None else tuning
        began = time.perf_counter()
        try:
            manifest = run(
                self.experiment, self.data, self.experiment.arm(arm), seed, tuning, name, tests=stage != "search"
            )
            outcome = f"validation WER {manifest['results']['validation']['eval_wer']:.2f} %"
        except FloatingPointError as error:
            if stage != "search":
                raise
            # In a search, divergence is a valid result.
            failure = {
                "arm": arm,
                "seed": seed,
                **asdict(tuning),
                "projector": {"arm": asdict(self.experiment.arm(arm))},
                "results": {},
                "error": str(error),
            }
            write_json(self.experiment.results / f"{name}.json", failure)
            outcome = "diverged"
        return f"{name} at {tuning}: {outcome}, {time.perf_counter() - began:.0f} s"


@contextmanager
def holding(file: Path, wait: bool) -> Iterator[bool]:
    """
    Hold a lock that processes share, and yield whether this process has it. Without `wait`, another process's lock gives
    `False`. The kernel releases the locks of ended processes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="YAML file; see comparison/experiment.py beside this file.")
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"Stages: {', '.join(STAGES)}.")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.stages) - set(STAGES))
    if unknown:
        parser.error(f"unknown stages {unknown}; choose from {', '.join(STAGES)}.")
    experiment = load_experiment(args.experiment)
    try:
        Comparison(experiment).do(args.stages or list(DEFAULT_STAGES))
    except Interrupted as interrupted:
        print("   stopped; run the same command again to continue from the checkpoint", flush=True)
        sys.exit(128 + interrupted.signal_number)


if __name__ == "__main__":
    main(sys.argv[1:])
