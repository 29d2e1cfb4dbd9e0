"""The comparison of projectors end to end, on tiny random models."""

import copy
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import compare
import pytest
import yaml
from comparison.experiment import Tuning, load_experiment
from comparison.hypotheses import read_hypotheses
from comparison.manifest import check_manifests
from comparison.report import make_report, read_manifests
from comparison.running import Interrupted, load_data, parse_outputs, run
from tiny_experiment import ARMS, SEEDS, write_experiment
from transformers import TrainerCallback

from llm_asr.evaluation.metrics import count_errors


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """The Trainer and statsmodels often collect garbage, which is slow after many other tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def done(parts, tmp_path_factory):
    """An experiment with all stages finished. Tests must not change it."""
    file = write_experiment(tmp_path_factory.mktemp("comparison"), parts, ablation_seeds=list(SEEDS))
    compare.main([str(file), *compare.STAGES[:-1]])
    return file


@pytest.fixture
def copied(done, tmp_path):
    """A copy of the finished experiment with other output folders."""
    experiment = load_experiment(done)
    shutil.copytree(experiment.results, tmp_path / "results")
    content = yaml.safe_load(done.read_text())
    content.update(results=str(tmp_path / "results"), runs=str(tmp_path / "runs"))
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def change(file, **changes):
    """Change fields in the file of an experiment."""
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}, sort_keys=False))
    return file


def manifests_of(file, *stages):
    return [m for stage in stages for m in read_manifests(load_experiment(file).results / stage)]


def test_the_report_has_effects_costs_plots_and_outputs(done):
    results = load_experiment(done).results
    report = json.loads((results / "report.json").read_text())
    for test in ("test", "seen"):
        assert set(report["tests"][test]) == {"all", "en", "es"}
        contrasts = report["tests"][test]["all"]["wer"]["contrasts"]
        effects, pairs = list(contrasts)[:3], list(contrasts)[3:]
        assert effects == ["MoE", "CIF", "MoE × CIF"]
        assert pairs == ["moe − conv", "cif − conv", "moe_cif − cif", "moe_cif − conv", "moe_cif − conv_wide"]
    arms, arms_of_words = (report["tests"]["test"]["all"][unit]["arms"] for unit in ("cer", "wer"))
    assert tuple(arms) == ARMS
    expected = (arms["moe"]["rate"] + arms["moe_cif"]["rate"] - arms["conv"]["rate"] - arms["cif"]["rate"]) / 2
    effect = report["tests"]["test"]["all"]["cer"]["contrasts"]["MoE"]
    assert effect["estimate"] == pytest.approx(expected)
    assert len(effect["by_seed"]) == len(SEEDS)
    costs = report["costs"]
    assert costs["conv_wide"]["total_parameters"] == pytest.approx(costs["moe_cif"]["total_parameters"], rel=0.01)
    assert costs["conv"]["total_parameters"] < costs["moe_cif"]["total_parameters"]
    for cost in costs.values():
        for name in ("flops_per_second", "tokens_per_second", "decoding_seconds", "training_seconds"):
            assert cost[name] > 0, name
    assert set(report["lengths"]) == {"cif", "moe_cif"}
    assert set(report["experts"]) == {"moe", "moe_cif"}
    ablations = report["ablations"]
    assert set(ablations["contrasts"]) == {"top 1 − moe_cif", "top 1 − conv"}
    for arm in ("moe_cif", "conv"):
        expected = ablations["arms"]["top 1"]["rate"] - arms_of_words[arm]["rate"]
        assert ablations["contrasts"][f"top 1 − {arm}"]["estimate"] == pytest.approx(expected)
    assert report["search"] == {"0.001": {arm: pytest.approx(100, abs=60) for arm in ARMS}}
    pictures = {file.name for file in results.glob("*.png")}
    assert pictures == {"effects.png", "curves.png", "length_error.png", "experts-moe.png", "experts-moe_cif.png"}
    markdown = (results / "report.md").read_text()
    for text in ("## Effects", "| moe_cif − conv_wide |", "## Test set `seen`", "## Ablations", "sources"):
        assert text in markdown
    assert re.findall(r"\| top 1 \| [\d.]+ \| (\w+) \|", markdown) == ["moe_cif", "conv"]


def test_the_reference_and_output_of_a_run_are_kept_for_each_recording(done):
    results = load_experiment(done).results
    rows = parse_outputs((results / "train" / "moe_cif-0.test.jsonl.gz").read_bytes())
    assert [row["reference"] for row in rows] == ["one two", "three", "uno dos tres", "cuatro cinco"]
    assert [row["language"] for row in rows] == ["en", "en", "es", "es"]
    assert [row["row"] for row in rows] == [0, 1, 2, 3]
    assert [row["seconds"] for row in rows] == pytest.approx([0.6, 0.3, 0.9, 0.6], abs=0.03)
    for row in rows:
        assert sum(row["expert_load"]) == pytest.approx(2 * row["audio_tokens"], abs=1e-3)
        assert row["target_tokens"] > 0
    assert "expert_load" not in parse_outputs((results / "train" / "cif-0.test.jsonl.gz").read_bytes())[0]
    # Targets are words if CIF fires words.
    targets = [
        row["target_tokens"] for row in parse_outputs((results / "ablate" / "top-1-0.test.jsonl.gz").read_bytes())
    ]
    assert targets == [2, 1, 3, 2]


def test_the_test_set_is_transcribed_as_the_validation_set_is(done):
    # Both sets have the same recordings here.
    report = json.loads((load_experiment(done).results / "report.json").read_text())
    for manifest in manifests_of(done, "train"):
        validation = manifest["results"]["validation"]
        for unit in ("wer", "cer"):
            rates = report["tests"]["test"]["all"][unit]["arms"][manifest["arm"]]["by_seed"]
            assert validation[f"eval_{unit}"] == pytest.approx(rates[SEEDS.index(manifest["seed"])])


def test_only_the_projector_differs(done):
    manifests = {(manifest["arm"], manifest["seed"]): manifest for manifest in manifests_of(done, "train")}
    assert set(manifests) == {(arm, seed) for arm in ARMS for seed in SEEDS}
    fixed = [json.dumps(manifest["fixed"], sort_keys=True) for manifest in manifests.values()]
    assert len(set(fixed)) == 1
    for seed in SEEDS:
        orders = {manifests[arm, seed]["fixed_by_seed"]["data_order"] for arm in ARMS}
        assert len(orders) == 1
    assert manifests["conv", 0]["fixed_by_seed"] != manifests["conv", 1]["fixed_by_seed"]
    shared = {"conv": "moe", "cif": "moe_cif"}
    for arm, other in shared.items():
        first, second = (manifests[name, 0]["initial_projector"] for name in (arm, other))
        both = {name for name in first if name.startswith("downsampler")}
        assert both
        assert {name: first[name] for name in both} == {name: second[name] for name in both}
    weights = "downsampler.convs.0.weight"
    assert len({manifests["conv", seed]["initial_projector"][weights][1] for seed in SEEDS}) == 2
    # Training has changed the projectors.
    finals = {manifest["final_weights"]["projector"] for manifest in manifests.values()}
    assert len(finals) == len(manifests)
    assert {manifest["final_weights"]["audio_tower"] for manifest in manifests.values()} == {
        manifests["conv", 0]["fixed"]["initial_weights"]["audio_tower"]
    }


def test_finished_runs_are_not_repeated_and_the_report_needs_only_the_manifests(copied, monkeypatch):
    results = load_experiment(copied).results
    before = (results / "report.json").read_bytes()
    for file in results.glob("report.*"):
        file.unlink()
    monkeypatch.setattr(compare, "run", None)
    compare.main([str(copied), "search", "train", "ablate", "report"])
    assert (results / "report.json").read_bytes() == before


class Stop(TrainerCallback):
    """Kills the process or sends it a signal in a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if self.number is None:
                raise SystemExit("killed")
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("stop", "ends_with", "goes_on_from"), [(Stop(3, None), SystemExit, 2), (Stop(2, signal.SIGTERM), Interrupted, 3)]
)
def test_an_interrupted_run_ends_with_the_results_of_an_uninterrupted_run(fresh, stop, ends_with, goes_on_from):
    experiment, data = fresh
    # A stopped run skips a due evaluation, so no evaluation is due here.
    experiment.training.update(max_steps=5, eval_steps=5)
    arm = experiment.arm("moe_cif")
    whole = run(experiment, data, arm, 0, Tuning(1e-3), "train/whole")
    with pytest.raises(ends_with):
        run(experiment, data, arm, 0, Tuning(1e-3), "train/cut", callbacks=(lambda trainer: stop,))
    assert not (experiment.results / "train" / "cut.json").exists()
    steps = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    resumed = run(experiment, data, arm, 0, Tuning(1e-3), "train/cut", callbacks=(lambda trainer: Watch(),))
    assert steps[0] == goes_on_from
    for name in ("final_weights", "fixed_by_seed", "initial_projector"):
        assert resumed[name] == whole[name], name
    for test in ("test", "seen"):
        assert resumed["outputs"][test]["sha256"] == whole["outputs"][test]["sha256"]
    assert resumed["results"]["curves"] == whole["results"]["curves"]
    assert not (experiment.runs / "train" / "cut").exists()


def test_lora_starts_from_equal_weights_and_is_tested_as_trained(parts, tmp_path):
    text_model = {"audio_model": parts["whisper"], "text_model": parts["qwen2"], "lora_rank": 2, "lora_alpha": 8}
    experiment = load_experiment(write_experiment(tmp_path, parts, model=text_model))
    data = load_data(experiment)
    first, second = (
        run(experiment, data, experiment.arm(arm), 0, Tuning(1e-2), f"train/{arm}") for arm in ("conv", "moe")
    )
    check_manifests([first, second])
    other = run(experiment, data, experiment.arm("conv"), 1, Tuning(1e-2), "train/other")
    # The seed determines the initial adapters.
    name = "initial_language_model"
    assert first["fixed_by_seed"][name] == second["fixed_by_seed"][name] != other["fixed_by_seed"][name]
    # LoRA is merged into the weights, so they differ from the initial ones.
    assert first["final_weights"]["language_model"] != first["fixed"]["initial_weights"]["language_model"]
    assert first["final_weights"]["language_model"] != second["final_weights"]["language_model"]
    rows = parse_outputs((experiment.results / first["outputs"]["test"]["file"]).read_bytes())
    columns = [[row[name] for row in rows] for name in ("reference", "hypothesis", "language")]
    characters = count_errors(*columns)[1]
    found = 100 * characters.errors.sum() / characters.reference_lengths.sum()
    assert found == pytest.approx(first["results"]["validation"]["eval_cer"])


def test_resuming_another_run_is_refused(fresh):
    experiment, data = fresh
    with pytest.raises(SystemExit):
        run(experiment, data, experiment.arm("cif"), 0, Tuning(1e-3), "a", callbacks=(lambda trainer: Stop(3, None),))
    with pytest.raises(ValueError, match=r"run\.learning_rate"):
        run(experiment, data, experiment.arm("cif"), 0, Tuning(2e-3), "a")


def test_incomparable_runs_are_refused_before_training(copied, monkeypatch):
    training = yaml.safe_load(copied.read_text())["training"]
    change(copied, training={**training, "weight_decay": 0.5}, seeds=[0, 1, 2])
    monkeypatch.setattr("comparison.running.ComparisonTrainer.train", None)
    with pytest.raises(ValueError, match=r"written with other fixed\.settings\.training\.weight_decay"):
        compare.main([str(copied), "train"])


def test_finished_runs_of_a_changed_arm_are_refused(copied):
    arms = yaml.safe_load(copied.read_text())["arms"]
    change(copied, arms={**arms, "moe": {"projector_type": "moe", "num_experts": 3}})
    for stage in ("train", "report"):
        with pytest.raises(ValueError, match="`moe` has changed since its finished run with seed 0"):
            compare.main([str(copied), stage])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("fixed", "data", "train", "sha256"),
            "0",
            r"fixed\.data\.train\.sha256 of conv \(seed 0\) and moe \(seed 1\)",
        ),
        (("fixed", "initial_weights", "language_model"), "0", r"fixed\.initial_weights\.language_model"),
        (("fixed", "sources"), "0", r"fixed\.sources"),
        (("fixed", "prompt"), "Translate.", r"fixed\.prompt"),
        (("fixed", "settings", "training", "max_steps"), 4, r"fixed\.settings\.training\.max_steps"),
        (("fixed", "settings", "training", "bf16"), True, r"fixed\.settings\.training\.bf16"),
        (("fixed", "settings", "decoding", "max_new_tokens"), 9, r"decoding\.max_new_tokens"),
        (("fixed_by_seed", "data_order"), "0", r"fixed_by_seed\.data_order of conv \(seed 1\) and moe \(seed 1\)"),
        (("fixed_by_seed", "initial_language_model"), "0", "initial_language_model"),
        (("learning_rate",), 2e-3, r"learning_rate of moe \(seed 0\) and moe \(seed 1\)"),
        (("projector", "config", "num_experts"), 5, r"projector\.config\.num_experts"),
        (("initial_projector", "downsampler.convs.0.weight", 1), "0", r"initial_projector\.downsampler"),
    ],
)
def test_runs_with_further_differences_are_refused(done, path, value, message):
    manifests = copy.deepcopy([m for m in manifests_of(done, "train") if m["arm"] in ("conv", "moe")])
    check_manifests(manifests)
    *parents, last = path
    place = next(manifest for manifest in manifests if (manifest["arm"], manifest["seed"]) == ("moe", 1))
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(ValueError, match=message):
        check_manifests(manifests)


def test_changed_outputs_and_missing_runs_are_refused(copied):
    experiment = load_experiment(copied)
    file = experiment.results / "train" / "cif-1.test.jsonl.gz"
    shutil.copy(experiment.results / "train" / "cif-0.test.jsonl.gz", file)
    with pytest.raises(ValueError, match=r"cif-1\.test\.jsonl\.gz has changed since the run"):
        make_report(experiment)
    file.with_name("cif-1.json").unlink()
    with pytest.raises(ValueError, match=r"1 runs are not finished, such as cif \(seed 1\)"):
        make_report(experiment)


def test_processes_divide_the_runs(copied):
    experiment = load_experiment(copied)
    folder = experiment.results / "train"
    before = {file: json.loads(file.read_text()) for file in folder.glob("c*.json")}
    for file in before:
        file.unlink()
    command = [sys.executable, compare.__file__, str(copied), "train"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    # Each run belongs to one process, and both processes had runs.
    trained = [re.findall(r"\] (train/\S+) at ", text) for text in printed]
    assert sorted(trained[0] + trained[1]) == sorted(f"train/{file.stem}" for file in before)
    assert all(trained)
    for file, manifest in before.items():
        assert json.loads(file.read_text())["final_weights"] == manifest["final_weights"]


def test_a_run_that_another_process_left_unfinished_is_continued(copied):
    experiment = load_experiment(copied)
    held, later = (experiment.results / "train" / f"{name}.json" for name in ("conv-0", "moe-1"))
    held.unlink()
    later.unlink()
    with compare.holding(experiment.runs / "train" / "conv-0.lock", wait=False) as free:
        assert free
        command = [sys.executable, compare.__file__, str(copied), "train"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while "train/moe-1 at" not in (line := process.stdout.readline()):
            assert line, "the process ended"
        assert not held.exists()
    assert "train/conv-0 at" in process.communicate(timeout=300)[0]
    assert held.exists()


def test_the_learning_rate_with_the_lowest_wer_is_chosen(copied):
    change(copied, learning_rates=[1e-3, 2e-3, 3e-3, 4e-3])
    comparison = compare.Comparison(load_experiment(copied))
    folder = comparison.experiment.results / "search"
    found = json.loads((folder / "moe_cif-1000-0.001.json").read_text())
    with pytest.raises(ValueError, match=r"'moe_cif' has no runs at learning rates \['0\.002', '0\.003', '0\.004'\]"):
        comparison.best_tuning("moe_cif")
    for rate, wer in ((1e-3, 30), (2e-3, 20), (3e-3, 20), (4e-3, None)):
        found["learning_rate"], found["results"] = rate, {} if wer is None else {"validation": {"eval_wer": wer}}
        (folder / f"moe_cif-1000-{rate:g}.json").write_text(json.dumps(found))
    assert comparison.best_tuning("moe_cif") == Tuning(2e-3)
    assert comparison.best_tuning("top 1") == Tuning(2e-3)
    # A later search with another result must not keep old runs.
    found["results"] = {"validation": {"eval_wer": 0}}
    for arm in ARMS:
        for rate in (2e-3, 3e-3, 4e-3):
            (folder / f"{arm}-1000-{rate:g}.json").write_text(json.dumps({**found, "arm": arm, "learning_rate": rate}))
    with pytest.raises(ValueError, match="has the learning rate 0.001, but the best one is now 0.002; remove"):
        comparison.train()


def test_a_learning_rate_at_which_training_diverges_is_reported(copied, monkeypatch):
    change(copied, learning_rates=[1e-3, 5.0])

    def diverge(*args, **kwargs):
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr(compare, "run", diverge)
    compare.main([str(copied), "search", "report"])
    report = json.loads((load_experiment(copied).results / "report.json").read_text())
    assert report["search"]["5"]["conv"] is None
    markdown = (load_experiment(copied).results / "report.md").read_text()
    assert "diverged" in markdown
    assert "The best tuning of conv, moe, cif, moe_cif, conv_wide is at an end of the tried values;" in markdown
    assert compare.Comparison(load_experiment(copied)).best_tuning("conv") == Tuning(1e-3)


def test_settings_tried_for_only_one_arm_are_reported(copied):
    search = load_experiment(copied).results / "search"
    manifest = json.loads((search / "conv-1000-0.001.json").read_text())
    manifest["learning_rate"] = 7.0
    (search / "conv-1000-7.json").write_text(json.dumps(manifest))
    compare.main([str(copied), "report"])
    markdown = (load_experiment(copied).results / "report.md").read_text()
    conv, moe = (
        json.loads((search / f"{arm}-1000-0.001.json").read_text())["results"]["validation"]["eval_wer"]
        for arm in ("conv", "moe")
    )
    assert f"| 0.001 | {conv:.2f} | {moe:.2f} |" in markdown
    assert f"| 7 | {conv:.2f} | – |" in markdown
    assert "Best at an end of what was tried" not in markdown


def test_loudness_is_tuned_like_the_learning_rate(parts, tmp_path):
    file = write_experiment(tmp_path, parts, loudness=[None, 1, 3], ablations={}, ablation_seeds=[])
    compare.main([str(file)])
    results = load_experiment(file).results
    assert {path.name for path in (results / "search").glob("conv-*")} == {
        "conv-1000-0.001.json",
        "conv-1000-0.001-loudness-1.json",
        "conv-1000-0.001-loudness-3.json",
    }
    found = {(one["arm"], Tuning.of(one)): one for one in manifests_of(file, "search")}
    quiet, loud = (found["cif", Tuning(1e-3, loudness)] for loudness in (1, 3))
    assert loud["output_scale"] == pytest.approx(3 * quiet["output_scale"])
    assert "output_scale" not in found["cif", Tuning(1e-3)]
    assert quiet["final_weights"] != loud["final_weights"]
    report = json.loads((results / "report.json").read_text())
    assert list(report["search"]) == ["0.001", "0.001, loudness 1", "0.001, loudness 3"]
    for manifest in manifests_of(file, "train"):
        tried = {tuning: found[manifest["arm"]] for tuning, found in report["search"].items()}
        assert tried[str(Tuning.of(manifest))] == min(tried.values())
        assert report["costs"][manifest["arm"]]["loudness"] == manifest["loudness"]
    # Change the loudness of one run only.
    trained = manifests_of(file, "train")
    trained[0]["loudness"] = 7
    with pytest.raises(ValueError, match=rf"loudness of {trained[0]['arm']} \(seed 0\)"):
        check_manifests(trained)


def test_packed_hypotheses_give_the_same_report(copied):
    """Equal hypotheses give equal archives."""
    compare.main([str(copied), "report"])
    results = load_experiment(copied).results
    before = (results / "report.json").read_text()
    loose = {file.relative_to(results).as_posix(): file.read_bytes() for file in results.rglob("*.jsonl.gz")}
    compare.main([str(copied), "pack"])
    assert not list(results.rglob("*.jsonl.gz"))
    packed = (results / "hypotheses.zip").read_bytes()
    compare.main([str(copied), "report", "pack"])
    assert (results / "report.json").read_text() == before
    assert (results / "hypotheses.zip").read_bytes() == packed
    assert {name: read_hypotheses(results, name) for name in loose} == loose
    with pytest.raises(ValueError, match="has no nowhere.jsonl.gz, and no hypotheses.zip that contains it"):
        read_hypotheses(results, "nowhere.jsonl.gz")
