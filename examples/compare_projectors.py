"""
Compare projectors under control: the same data in the same order, optimiser, schedule, initial weights of shared parts,
prompts and decoding, over several seeds.

    python examples/compare_projectors.py examples/comparison/recorded.yaml                 # all but the ablations
    python examples/compare_projectors.py examples/comparison/recorded.yaml ablate report
    python examples/compare_projectors.py examples/comparison/recorded.yaml report          # from the manifests

What is finished is not done again; a run that was stopped goes on from its checkpoint. Started more than once, on one GPU
each (`CUDA_VISIBLE_DEVICES=1 python …`), the command shares the runs out. Stages:

    prepare   make the data, and run the frozen encoder over it
    search    choose a learning rate, and possibly a loudness, for each arm on the validation set
    train     train and test each arm with each seed
    ablate    the same for the ablations, tuned as the arms that they are like
    report    refuse runs that differ in more than the projector; statistics, tables and plots
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
from comparison.manifest import write_json
from comparison.report import make_report, read_manifests
from comparison.running import Data, Interrupted, load_data, run


STAGES = ("prepare", "search", "train", "ablate", "report")
DEFAULT_STAGES = ("prepare", "search", "train", "report")


def slug(text: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-")


class Comparison:
    """
    What is to be done for an experiment, and what is done.

    Args:
        experiment ([`Experiment`]): What to compare.
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
        # A seed at a time, so that half of the seeds compare all arms.
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
        """Of an arm or an ablation: the one with the lowest WER on the validation set."""
        tuned_as = self.experiment.arm(arm).tuned_as
        # Where training diverged there is no WER.
        found = {
            Tuning.of(manifest): manifest["results"].get("validation", {}).get("eval_wer", math.inf)
            for manifest in read_manifests(self.experiment.results / "search")
            if manifest["arm"] == tuned_as
        }
        missing = [str(tuning) for tuning in self.experiment.tunings if tuning not in found]
        if missing:
            raise ValueError(f"{tuned_as!r} was not tried at learning rates {missing}; do the stage `search` first.")
        # Of equals the one with the smaller rate.
        best = min(self.experiment.tunings, key=lambda tuning: (found[tuning], tuning.learning_rate))
        if found[best] == math.inf:
            raise ValueError(f"{tuned_as!r} diverged at all `learning_rates`; add smaller ones.")
        return best

    def _lock(self, name: str, wait: bool = True):
        return holding(self.experiment.runs / f"{name}.lock", wait)

    def _run_all(self, stage: str, tasks: list[tuple[str, int, Tuning | None]]) -> None:
        """Train what has no manifest yet; `None` for the tuning that was found best."""
        todo = [task for task in tasks if not self._is_done(stage, *task)]
        print(f"   {len(tasks) - len(todo)} of {len(tasks)} runs are done", flush=True)
        started = time.perf_counter()
        # What other processes train is passed over, and waited for in the end: they may leave it unfinished.
        for wait in (False, True):
            for task in todo:
                with self._lock(self._name(stage, *task), wait) as free:
                    if not free or self._is_done(stage, *task):
                        continue
                    outcome = self._run(stage, *task)
                left = sum(not self._is_done(stage, *other) for other in todo)
                minutes = (time.perf_counter() - started) / (len(todo) - left) * left / 60
                print(
                    f"   [{len(tasks) - left}/{len(tasks)}] {outcome}; {stage} takes about {minutes:.0f} min more",
                    flush=True,
                )

    def _name(self, stage: str, arm: str, seed: int, tuning: Tuning | None) -> str:
        return f"{stage}/{slug(arm)}-{seed}" + ("" if tuning is None else f"-{slug(str(tuning))}")

    def _is_done(self, stage: str, arm: str, seed: int, tuning: Tuning | None) -> bool:
        """
        Whether a run has its manifest.

        Raises:
            `ValueError`: If the manifest is of another arm of that name, or of a tuning that is no longer the best.
        """
        manifest = self.experiment.results / f"{self._name(stage, arm, seed, tuning)}.json"
        if not manifest.exists():
            return False
        finished = json.loads(manifest.read_text(encoding="utf-8"))
        self.experiment.check_run(finished)
        if tuning is None and Tuning.of(finished) != self.best_tuning(arm):
            raise ValueError(
                f"{manifest} is of learning rate {Tuning.of(finished)}, and {self.best_tuning(arm)} is the best of those "
                f"tried now; remove the manifests of `{arm}` to train it anew, or take what was added out of "
                "`learning_rates` and `loudness`."
            )
        return True

    def _run(self, stage: str, arm: str, seed: int, tuning: Tuning | None) -> str:
        """Train and test, and say how it went."""
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
            # A rate at which an arm diverges is a finding of the search.
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
    """Hold a lock among processes; or not, if another one has it and `wait` is not set. The kernel frees those of the dead."""
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
    parser.add_argument("experiment", type=Path, help="YAML file; see examples/comparison/experiment.py.")
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"Of {', '.join(STAGES)}.")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.stages) - set(STAGES))
    if unknown:
        parser.error(f"unknown stages {unknown}; choose from {', '.join(STAGES)}.")
    experiment = load_experiment(args.experiment)
    try:
        Comparison(experiment).do(args.stages or list(DEFAULT_STAGES))
    except Interrupted as interrupted:
        print("   stopped; the same command goes on from the checkpoint", flush=True)
        sys.exit(128 + interrupted.signal_number)


if __name__ == "__main__":
    main(sys.argv[1:])
