"""Writes the report of an experiment, with tables and plots, from manifests and outputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from comparison.experiment import Experiment, Tuning
from comparison.factorial import (
    SeededErrors,
    arm_report,
    bootstrap_rates,
    contrast_report,
    factorial_contrasts,
)
from comparison.hypotheses import read_hypotheses
from comparison.manifest import check_manifests, write_json
from comparison.running import parse_outputs
from matplotlib import colormaps
from matplotlib.figure import Figure

from llm_asr.evaluation.alignment import length_report
from llm_asr.evaluation.expert_usage import expert_usage, plot_expert_usage
from llm_asr.evaluation.metrics import count_errors


EFFECTS = {"first": "MoE", "second": "CIF", "interaction": "MoE × CIF"}
WIDE_ARM = "conv_wide"


@dataclass
class Runs:
    """
    Comparable runs and their outputs on one test set.

    Attributes:
        manifests: Manifests by arm and seed.
        outputs: Outputs by arm and seed, each a list with a dict for each row.
    """

    manifests: dict[str, dict[int, dict]]
    outputs: dict[str, dict[int, list[dict]]]

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.manifests)

    def first(self, arm: str) -> dict:
        return next(iter(self.manifests[arm].values()))


def read_manifests(folder: Path) -> list[dict]:
    """Read the manifests of all finished runs in a folder."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def collect_runs(
    experiment: Experiment, manifests: Sequence[dict], arms: Sequence[str], seeds: Sequence[int], test: str
) -> Runs:
    """
    Collect the runs of `arms` with `seeds`.

    Raises:
        `ValueError`: If a run is missing or its arm has changed, if runs may not be compared, or if outputs have changed.
    """
    found = {(manifest["arm"], manifest["seed"]): manifest for manifest in manifests}
    missing = [f"{arm} (seed {seed})" for arm in arms for seed in seeds if (arm, seed) not in found]
    if missing:
        raise ValueError(f"{len(missing)} runs are not finished, such as {missing[0]}; train them first.")
    by_arm = {arm: {seed: found[arm, seed] for seed in seeds} for arm in arms}
    used = [manifest for by_seed in by_arm.values() for manifest in by_seed.values()]
    for manifest in used:
        experiment.check_run(manifest)
    check_manifests(used)
    outputs: dict[str, dict[int, list[dict]]] = {}
    for arm, by_seed in by_arm.items():
        outputs[arm] = {}
        for seed, manifest in by_seed.items():
            name, digest = (manifest["outputs"][test][field] for field in ("file", "sha256"))
            contents = read_hypotheses(experiment.results, name)
            if hashlib.sha256(contents).hexdigest() != digest:
                raise ValueError(f"{name} has changed since the run: its checksum differs from the manifest's.")
            outputs[arm][seed] = parse_outputs(contents)
    return Runs(by_arm, outputs)


def count_seeded_errors(runs: Runs) -> tuple[dict[str, SeededErrors], list[str | None]]:
    """Count errors in words (`"wer"`) and in characters (`"cer"`) for all rows with reference words, and list languages."""
    rows = next(iter(next(iter(runs.outputs.values())).values()))
    references, languages = [row["reference"] for row in rows], [row["language"] for row in rows]
    counts: dict[str, list[list[np.ndarray]]] = {"wer": [], "cer": []}
    lengths: dict[str, np.ndarray] = {}
    for by_seed in runs.outputs.values():
        for unit in counts:
            counts[unit].append([])
        for outputs in by_seed.values():
            found = count_errors(references, [row["hypothesis"] for row in outputs], languages)
            for unit, errors in zip(counts, found, strict=True):
                counts[unit][-1].append(errors.errors)
                lengths[unit] = errors.reference_lengths
    spoken = np.flatnonzero(lengths["wer"] > 0)
    data = {
        unit: SeededErrors(runs.arms, np.array(arrays)[:, :, spoken], lengths[unit][spoken])
        for unit, arrays in counts.items()
    }
    return data, [languages[row] for row in spoken]


def main_contrasts(arms: Sequence[str]) -> dict[str, Mapping[str, float]]:
    """
    The contrasts of the report: the effects of the factorial design, each part alone against `conv`, experts with CIF against
    CIF alone, and the full method against `conv` and against `conv` with equal parameters.
    """
    effects = factorial_contrasts("conv", "moe", "cif", "moe_cif")
    contrasts = {EFFECTS[name]: contrast for name, contrast in effects.items()}
    pairs = [("moe", "conv"), ("cif", "conv"), ("moe_cif", "cif"), ("moe_cif", "conv"), ("moe_cif", WIDE_ARM)]
    return contrasts | pair_contrasts([pair for pair in pairs if pair[1] in arms])


def pair_contrasts(pairs: Sequence[tuple[str, str]]) -> dict[str, Mapping[str, float]]:
    """Contrasts of the first arm of each pair minus the second one."""
    return {f"{arm} − {base}": {arm: 1.0, base: -1.0} for arm, base in pairs}


def analyse(runs: Runs, contrasts: Mapping[str, Mapping[str, float]], num_resamples: int) -> dict[str, Any]:
    """Error rates and contrasts in words and in characters, pooled and by language."""
    counted, languages = count_seeded_errors(runs)
    report: dict[str, Any] = {}
    for group in ("all", *sorted({language for language in languages if language})):
        rows = np.array([index for index, language in enumerate(languages) if group in ("all", language)])
        report[group] = {"recordings": len(rows)}
        for unit, data in counted.items():
            chosen = data[rows]
            resampled = bootstrap_rates(chosen, num_resamples)
            report[group][unit] = {
                "arms": arm_report(chosen, resampled),
                "contrasts": contrast_report(chosen, contrasts, resampled),
            }
    return report


def describe_costs(runs: Runs, test: str) -> dict[str, dict[str, float]]:
    """Costs of each arm, averaged over seeds."""
    costs = {}
    for arm, by_seed in runs.manifests.items():
        results = [manifest["results"] for manifest in by_seed.values()]
        costs[arm] = {
            **asdict(Tuning.of(runs.first(arm))),
            **{name: results[0][test][name] for name in ("total_parameters", "active_parameters")},
            **{
                name: mean(result[test][name] for result in results)
                for name in ("flops_per_second", "tokens_per_second", "decoding_seconds")
            },
            "training_seconds": mean(result["training_seconds"] for result in results),
        }
    return costs


def describe_lengths(runs: Runs) -> dict[str, dict[str, dict[str, float]]]:
    """Length report of each arm with CIF, averaged over seeds."""
    reports = {}
    for arm, by_seed in runs.outputs.items():
        if "cif" not in runs.first(arm)["projector"]["config"]["projector_type"]:
            continue
        found = []
        for rows in by_seed.values():
            spoken = [row for row in rows if row["target_tokens"]]
            columns = [[row[name] for row in spoken] for name in ("audio_tokens", "target_tokens", "seconds")]
            found.append(length_report(*columns, [row["language"] or "" for row in spoken]))
        reports[arm] = {
            group: {name: mean(report[group][name] for report in found) for name in found[0][group]}
            for group in found[0]
        }
    return reports


def describe_experts(runs: Runs) -> dict[str, dict[int, dict]]:
    """Expert usage of each arm with experts, by seed. Experts of different seeds do not correspond, so it is not averaged."""
    usages: dict[str, dict[int, dict]] = {}
    for arm, by_seed in runs.outputs.items():
        for seed, rows in by_seed.items():
            if "expert_load" in rows[0]:
                loads, languages = zip(*((row["expert_load"], row["language"] or "") for row in rows), strict=True)
                usages.setdefault(arm, {})[seed] = expert_usage(np.array(loads), languages)
    return usages


def analyse_ablations(
    experiment: Experiment, manifests: Sequence[dict], test: str, num_resamples: int
) -> dict[str, dict]:
    """Compare each finished ablation with its arms, using the same seeds and equal machines."""
    done = [
        name
        for name in experiment.ablations
        if {m["seed"] for m in manifests if m["arm"] == name} >= set(experiment.ablation_seeds)
    ]
    if not done:
        return {}
    pairs = [(name, base) for name in done for base in experiment.compared_with(name)]
    bases = list(dict.fromkeys(base for _, base in pairs))
    runs = collect_runs(experiment, manifests, [*bases, *done], experiment.ablation_seeds, test)
    data = count_seeded_errors(runs)[0]["wer"]
    resampled = bootstrap_rates(data, num_resamples)
    return {
        "pairs": pairs,
        "seeds": experiment.ablation_seeds,
        "arms": arm_report(data, resampled),
        "contrasts": contrast_report(data, pair_contrasts(pairs), resampled),
        "costs": describe_costs(runs, test),
        "lengths": describe_lengths(runs),
    }


def describe_search(experiment: Experiment) -> dict[str, dict[str, float]]:
    """WER on the validation set by tuning, in ascending order, and by arm. `None` if training diverged."""
    searched: dict[str, dict[str, float]] = {}
    manifests = read_manifests(experiment.results / "search")
    for manifest in sorted(manifests, key=lambda one: (Tuning.of(one).loudness or 0, one["learning_rate"])):
        wer = manifest["results"].get("validation", {}).get("eval_wer")
        searched.setdefault(str(Tuning.of(manifest)), {})[manifest["arm"]] = wer
    return searched


def best_at_an_end(experiment: Experiment, costs: Mapping[str, dict]) -> list[str]:
    """Arms whose best tuning is the smallest or the largest of the tried values. A single tried value does not count."""

    def is_end(value: float | None, tried: Sequence[float | None]) -> bool:
        known = [one for one in tried if one is not None]
        return len(tried) > 1 and value is not None and value in (min(known), max(known))

    return [
        arm
        for arm, cost in costs.items()
        if is_end(cost["learning_rate"], experiment.learning_rates) or is_end(cost["loudness"], experiment.loudness)
    ]


def make_report(experiment: Experiment, num_resamples: int = 10_000) -> dict[str, Any]:
    """
    Analyse all runs in `experiment.results`, and write `report.json`, `report.md` and plots there.

    Raises:
        `ValueError`: If a run of an arm is missing, or runs differ in more than the projector.
    """
    manifests = [m for folder in ("train", "ablate") for m in read_manifests(experiment.results / folder)]
    main_test, *other_tests = experiment.test_datasets
    runs = collect_runs(experiment, manifests, list(experiment.arms), experiment.seeds, main_test)
    contrasts = main_contrasts(runs.arms)
    usages, costs = describe_experts(runs), describe_costs(runs, main_test)
    report: dict[str, Any] = {
        "name": experiment.name,
        "seeds": experiment.seeds,
        "num_resamples": num_resamples,
        "tests": {main_test: analyse(runs, contrasts, num_resamples)},
        "costs": costs,
        "lengths": describe_lengths(runs),
        "experts": usages,
        "search": describe_search(experiment),
        "best_at_an_end": best_at_an_end(experiment, costs),
        "ablations": analyse_ablations(experiment, manifests, main_test, num_resamples),
        "fixed": runs.first(runs.arms[0])["fixed"],
        "provenance": [
            json.loads(text)
            for text in sorted(
                {json.dumps(m["provenance"]) for seeds in runs.manifests.values() for m in seeds.values()}
            )
        ],
    }
    for test in other_tests:
        other = collect_runs(experiment, manifests, list(experiment.arms), experiment.seeds, test)
        report["tests"][test] = analyse(other, contrasts, num_resamples)
    folder = experiment.results
    write_json(folder / "report.json", report)
    plot_effects(report["tests"][main_test], list(EFFECTS.values()), folder / "effects.png")
    plot_curves(runs, folder / "curves.png")
    if report["lengths"]:
        plot_lengths(report["lengths"], folder / "length_error.png")
    for arm, by_seed in usages.items():
        seed, usage = next(iter(by_seed.items()))
        plot_expert_usage(usage, folder / f"experts-{arm}.png", f"{arm}, seed {seed}: share of frames by expert")
    (folder / "report.md").write_text(render(report, main_test) + "\n", encoding="utf-8")
    return report


# --- Plots ----------------------------------------------------------------------------------------------------------


def plot_effects(groups: Mapping[str, dict], names: Sequence[str], file: Path) -> None:
    """Draw a forest plot with a panel for each effect and a line for each language. Left of zero means fewer errors."""
    figure = Figure(figsize=(4 * len(names), 1.4 + 0.4 * len(groups)), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for position, group in enumerate(groups):
            found = groups[group]["wer"]["contrasts"][name]
            color = "black" if group == "all" else "tab:blue"
            axis.plot(found["interval"], [position] * 2, color=color, linewidth=1.5)
            axis.plot(found["bootstrap_interval"], [position] * 2, color=color, linewidth=5, alpha=0.3)
            axis.plot(found["estimate"], position, "s" if group == "all" else "o", color=color)
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set(title=name, xlabel="WER, percentage points")
        axis.set_yticks(range(len(groups)), groups)
    axes[0].invert_yaxis()
    figure.savefig(file, dpi=120)


def plot_curves(runs: Runs, file: Path) -> None:
    """Draw learning curves: the means over seeds and their range."""
    panels = {"eval_wer": "WER on the validation set (%)", "lm_loss": "training loss of the language model"}
    panels["length_error"] = "length error of CIF in training (%)"
    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for color, (arm, by_seed) in zip(colormaps["tab10"].colors, runs.manifests.items(), strict=False):
            curves = [
                {entry["step"]: entry[name] for entry in manifest["results"]["curves"] if name in entry}
                for manifest in by_seed.values()
            ]
            steps = sorted(set.intersection(*map(set, curves)))
            if not steps:
                continue
            values = np.array([[curve[step] for step in steps] for curve in curves])
            axis.plot(steps, values.mean(0), label=arm, color=color, marker="." if len(steps) < 20 else None)
            axis.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize="small")
    figure.savefig(file, dpi=120)


def plot_lengths(lengths: Mapping[str, dict], file: Path) -> None:
    groups = list(next(iter(lengths.values())))
    figure = Figure(figsize=(1.5 + 0.9 * len(groups), 3), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(lengths)
    for index, (arm, report) in enumerate(lengths.items()):
        positions = np.arange(len(groups)) + (index - (len(lengths) - 1) / 2) * width
        axis.bar(positions, [report[group]["length_error"] for group in groups], width, label=arm)
    axis.set_xticks(range(len(groups)), groups)
    axis.set(title="CIF: length error on the test set", ylabel="%")
    axis.legend(fontsize="small")
    figure.savefig(file, dpi=120)


# --- Markdown -------------------------------------------------------------------------------------------------------


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    alignment = ["---", *["---:"] * (len(headers) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, alignment, *rows))


def _interval(ends: Sequence[float], signed: bool = False) -> str:
    return f"[{', '.join(_signed(end) if signed else f'{end:.2f}' for end in ends)}]"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def contrast_table(contrasts: Mapping[str, dict]) -> str:
    rows = []
    for name, found in contrasts.items():
        ratio = f"{found['ratio']:.2f} {_interval(found['ratio_interval'])}" if "ratio" in found else "–"
        values = (_p_value(found[key]) for key in ("p_value", "holm_p_value"))
        intervals = (_interval(found[key], signed=True) for key in ("interval", "bootstrap_interval"))
        rows.append([name, _signed(found["estimate"]), *intervals, *values, ratio])
    headers = ["", "WER, points", "95 % interval", "bootstrap", "p", "p (Holm)", "factor on WER"]
    return table(headers, rows)


def arm_table(groups: Mapping[str, dict], unit: str) -> str:
    names = list(groups)
    rows = []
    for arm in groups["all"][unit]["arms"]:
        found = [groups[name][unit]["arms"][arm] for name in names]
        rows.append([arm, *(f"{one['rate']:.2f} {_interval(one['interval'])}" for one in found)])
    return table([f"{unit.upper()} %", *names], rows)


def cost_table(costs: Mapping[str, dict]) -> str:
    headers = ["", "learning rate", "loudness", "parameters", "active", "MFLOP/s of audio", "LLM tokens/s of audio"]
    rows = [
        [
            arm,
            f"{cost['learning_rate']:g}",
            "as drawn" if cost["loudness"] is None else f"{cost['loudness']:g}",
            f"{cost['total_parameters']:,}",
            f"{cost['active_parameters']:,}",
            f"{cost['flops_per_second'] / 1e6:.1f}",
            f"{cost['tokens_per_second']:.2f}",
            f"{cost['training_seconds']:.0f}",
            f"{cost['decoding_seconds']:.1f}",
        ]
        for arm, cost in costs.items()
    ]
    return table([*headers, "training, s", "decoding the test set, s"], rows)


def render(report: Mapping[str, Any], main_test: str) -> str:
    """The report in Markdown."""
    main = report["tests"][main_test]
    seeds = ", ".join(map(str, report["seeds"]))
    data = report["fixed"]["data"]
    parts = [
        f"# Comparison of projectors: {report['name']}",
        f"Written by `studies/projectors/compare.py` from the manifests and outputs in this folder. Seeds {seeds}; "
        f"{data['train']['rows']} training, {data['validation']['rows']} validation, {data[main_test]['rows']} test "
        "recordings.",
        "## Effects",
        "Effects are in percentage points of WER; negative is better. MoE is the change by experts, averaged over models with and "
        "without CIF. CIF is the change by CIF, averaged over models with and without experts. MoE × CIF is the change by experts "
        "with CIF minus the change by experts without CIF. The interval and p come from a regression with standard errors that "
        "are robust to seeds and utterances. The second interval comes from a bootstrap over seeds and utterances. p (Holm) is "
        "corrected for all lines of a table.",
        contrast_table(main["all"]["wer"]["contrasts"]),
        "![Effects by language](effects.png)",
        "## Error rates",
        arm_table(main, "wer"),
        arm_table(main, "cer"),
        "WER of each seed: "
        + "; ".join(
            f"{arm} {', '.join(f'{rate:.2f}' for rate in found['by_seed'])}"
            for arm, found in main["all"]["wer"]["arms"].items()
        )
        + ".",
        "## Cost",
        cost_table(report["costs"]),
        "## Effects by language",
    ]
    for group, found in main.items():
        if group != "all":
            parts += [f"### {group}", contrast_table(found["wer"]["contrasts"])]
    for test, groups in report["tests"].items():
        if test != main_test:
            parts += [
                f"## Test set `{test}`",
                arm_table(groups, "wer"),
                contrast_table(groups["all"]["wer"]["contrasts"]),
            ]
    parts += [
        "## Learning curves",
        "The lines are means over seeds, and the areas are their ranges.",
        "![Learning curves](curves.png)",
    ]
    if report["lengths"]:
        groups = list(next(iter(report["lengths"].values())))
        rows = [
            [arm, *(f"{lengths[group]['length_error']:.1f}" for group in groups)]
            for arm, lengths in report["lengths"].items()
        ]
        parts += [
            "## Token counts of CIF",
            table(["length error %", *groups], rows),
            "![Length error](length_error.png)",
        ]
    if report["experts"]:
        parts.append("## Experts")
        for arm, by_seed in report["experts"].items():
            bits = ", ".join(f"{usage['mutual_information']:.3f}" for usage in by_seed.values())
            shares = ", ".join(f"{100 * usage['min_share']:.1f}" for usage in by_seed.values())
            parts.append(
                f"`{arm}`: mutual information of expert and language by seed {bits} bits; smallest share of an expert "
                f"{shares} %."
            )
            parts.append(f"![Experts of {arm}](experts-{arm}.png)")
    if report["ablations"]:
        ablations = report["ablations"]
        rows = []
        for (name, base), found in zip(ablations["pairs"], ablations["contrasts"].values(), strict=True):
            lengths = ablations["lengths"].get(name)
            rows.append(
                [
                    name,
                    f"{ablations['arms'][name]['rate']:.2f}",
                    base,
                    f"{_signed(found['estimate'])} {_interval(found['interval'], signed=True)}",
                    _interval(found["bootstrap_interval"], signed=True),
                    _p_value(found["holm_p_value"]),
                    f"{ablations['costs'][name]['total_parameters']:,}",
                    f"{ablations['costs'][name]['tokens_per_second']:.2f}",
                    f"{lengths['all']['length_error']:.1f}" if lengths else "–",
                ]
            )
        headers = ["", "WER %", "against", "difference", "bootstrap", "p (Holm)", "parameters", "LLM tokens/s"]
        parts += [
            "## Ablations",
            f"Seeds {', '.join(map(str, ablations['seeds']))}. Each ablation has the tuning of the first arm with which it is "
            "compared.",
            table([*headers, "length error %"], rows),
        ]
    arms = list(report["costs"])
    rows = [
        [
            tuning,
            *("–" if arm not in found else "diverged" if found[arm] is None else f"{found[arm]:.2f}" for arm in arms),
        ]
        for tuning, found in report["search"].items()
    ]
    parts += ["## Learning rates", table(["WER % on the validation set", *arms], rows)]
    if report["best_at_an_end"]:
        parts.append(
            f"The best tuning of {', '.join(report['best_at_an_end'])} is at an end of the tried values; a wider search might "
            "find a better one."
        )
    parts.append("## Provenance")
    machine = ", ".join(f"{name} {value}" for name, value in report["fixed"]["machine"].items())
    revisions = "; ".join(
        f"{known['revision']}{' with changes' if known.get('dirty') else ''}" for known in report["provenance"]
    )
    parts.append(f"{machine}. Revision {revisions}; sources {report['fixed']['sources'][:16]}.")
    return "\n\n".join(parts)
