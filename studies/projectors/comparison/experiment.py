"""Reads and checks the YAML file of an experiment: the compared arms and their common settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from llm_asr import LlmAsrConfig, LlmAsrProjectorConfig
from llm_asr.evaluation.projector_cost import match_parameters


FACTORIAL_ARMS = ("conv", "moe", "cif", "moe_cif")
CIF_TARGETS = ("token", "word", "character")

# The experiment sets these options for each run.
RESERVED_TRAINING_OPTIONS = ("learning_rate", "output_dir", "seed", "data_seed")


@dataclass(frozen=True)
class Tuning:
    """
    Options that are chosen for each arm on the validation set.

    Attributes:
        learning_rate (`float`): Peak of the schedule.
        loudness (`float`, *optional*): Root mean square of the projector's embeddings before training, relative to that of the
            language model's embeddings. `None` keeps the initial weights.
    """

    learning_rate: float
    loudness: float | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Tuning:
        """The tuning of a run. Old manifests have no loudness."""
        return cls(manifest["learning_rate"], manifest.get("loudness"))

    def __str__(self) -> str:
        return (
            f"{self.learning_rate:g}"
            if self.loudness is None
            else f"{self.learning_rate:g}, loudness {self.loudness:g}"
        )


@dataclass(frozen=True)
class Arm:
    """
    One of the compared projectors.

    Attributes:
        name (`str`): Name in the experiment.
        projector (`dict`): Fields of [`LlmAsrProjectorConfig`], including the fields that all arms share.
        match_parameters (`str`, *optional*): Arm with the wanted number of parameters. `intermediate_size` is adjusted to it.
        cif_target (`str`): Unit for which CIF fires one embedding: `"token"`, `"word"` or `"character"`.
        tuned_as (`str`): Arm whose tuning is used. An arm with its own search names itself.
    """

    name: str
    projector: dict[str, Any]
    match_parameters: str | None
    cif_target: str
    tuned_as: str


@dataclass
class Experiment:
    """
    A controlled comparison. The attributes are the fields of its file.

    Attributes:
        name: Name of the experiment.
        results: Folder for manifests, outputs and the report, which are kept.
        runs: Folder for checkpoints of unfinished runs.
        train_dataset, validation_dataset: Datasets for `llm-asr train`.
        test_datasets: Test sets by name. The first is the main test set. The report also shows the results of the others.
        model: `audio_model`, `text_model`, `freeze_audio`, `freeze_text`, `encoder_padding`, `lora_rank`, `lora_alpha` and
            `lora_dropout`, as in `llm-asr train`.
        projector: Fields of `LlmAsrProjectorConfig` that all arms share.
        training: Fields of `LlmAsrTrainingArguments` that all arms share.
        learning_rates: Learning rates to try for each arm, with one run each and `search_seed`. The lowest WER on
            `validation_dataset` wins.
        loudness: Values to try with each learning rate; see [`Tuning`]. By default projectors keep their initial weights, and
            projectors of different depth and width start with different loudness.
        seeds: Seeds of the runs of each arm. A seed determines the initial weights of projectors (and LoRA) and the order of
            the data.
        arms: Fields of `LlmAsrProjectorConfig` by name of the arm. An arm may also have `match_parameters: ARM`. `conv`,
            `moe`, `cif` and `moe_cif` form the factorial design.
        ablations: Ablations by name. `like: ARM` names the arm whose fields and tuning an ablation takes and with which it is
            compared. Further entries are changed fields, `cif_target`, and `against: [ARM, ...]` for further comparisons.
            Instead of a mapping, this may be the name of a file in the same folder.
        ablation_seeds: Seeds of the runs of each ablation, a subset of `seeds`.
        prepare: Commands that create the data, each with the file that it `creates`.
        feature_cache: Folder for saving the outputs of a frozen encoder.
        max_new_tokens, decode_batch_size: Settings of greedy decoding.
        threads: Number of CPU threads of each run.
    """

    name: str
    results: Path
    runs: Path
    train_dataset: str
    validation_dataset: str
    test_datasets: dict[str, str]
    model: dict[str, Any]
    training: dict[str, Any]
    learning_rates: list[float]
    arms: dict[str, dict[str, Any]]
    projector: dict[str, Any] = field(default_factory=dict)
    loudness: list[float | None] = field(default_factory=lambda: [None])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    search_seed: int = 1000
    ablations: dict[str, dict[str, Any]] = field(default_factory=dict)
    ablation_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    prepare: list[dict[str, Any]] = field(default_factory=list)
    feature_cache: str | None = None
    max_new_tokens: int = 64
    decode_batch_size: int = 50
    threads: int = 2

    def __post_init__(self):
        self.results, self.runs = Path(self.results), Path(self.runs)
        self.learning_rates = [float(rate) for rate in self.learning_rates]
        self.loudness = [None if value is None else float(value) for value in self.loudness]
        if not self.loudness or not all(value is None or value > 0 for value in self.loudness):
            raise ValueError(f"`loudness` must hold positive numbers, or null for none, got {self.loudness}.")
        if self.search_seed in self.seeds:
            raise ValueError(
                f"`search_seed` ({self.search_seed}) must not be one of `seeds`, which would then choose their own rates."
            )
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 2:
            raise ValueError(f"`seeds` must hold two or more different seeds, got {self.seeds}.")
        if not set(self.ablation_seeds) <= set(self.seeds):
            raise ValueError(
                f"`ablation_seeds` {self.ablation_seeds} must be among `seeds`, because they are compared with those runs."
            )
        if not self.learning_rates or not self.test_datasets:
            raise ValueError("`learning_rates` and `test_datasets` must not be empty.")
        reserved = sorted(set(self.training) & set(RESERVED_TRAINING_OPTIONS))
        if reserved:
            raise ValueError(f"`training` must leave out {reserved}, which the experiment sets for each run.")
        missing = [name for name in FACTORIAL_ARMS if name not in self.arms]
        if missing:
            raise ValueError(f"`arms` lacks {missing}; a factorial design needs {list(FACTORIAL_ARMS)}.")
        shared = sorted(set(self.arms) & set(self.ablations))
        if shared:
            raise ValueError(f"`ablations` {shared} are `arms` already; name them otherwise.")
        for name in (*self.arms, *self.ablations):
            # Refuse unknown and invalid options now, and not after hours.
            arm = self.arm(name)
            LlmAsrProjectorConfig(**arm.projector)
            if arm.match_parameters is not None and arm.match_parameters not in self.arms:
                raise ValueError(
                    f"`match_parameters` of {name!r} must be one of `arms`, got {arm.match_parameters!r}."
                )

    @property
    def tunings(self) -> list[Tuning]:
        """All tunings to try for each arm."""
        return [Tuning(rate, loudness) for loudness, rate in product(self.loudness, self.learning_rates)]

    def arm(self, name: str) -> Arm:
        """An arm or an ablation by its name."""
        if name in self.arms:
            options, tuned_as = dict(self.arms[name]), name
        else:
            tuned_as = self.ablations[name].get("like")
            if tuned_as not in self.arms:
                raise ValueError(f"`like` of {name!r} must be one of `arms`, got {tuned_as!r}.")
            options = {**self.arms[tuned_as], **self.ablations[name]}
            del options["like"]
            strangers = sorted(set(options.pop("against", [])) - set(self.arms))
            if strangers:
                raise ValueError(f"`against` of {name!r} must list some of `arms`, got {strangers}.")
        cif_target = options.pop("cif_target", "token")
        if cif_target not in CIF_TARGETS:
            raise ValueError(f"`cif_target` of {name!r} must be one of {list(CIF_TARGETS)}, got {cif_target!r}.")
        matched = options.pop("match_parameters", None)
        return Arm(name, {**self.projector, **options}, matched, cif_target, tuned_as)

    def compared_with(self, ablation: str) -> list[str]:
        """Arms with which an ablation is compared. The first one is the arm in `like`."""
        options = self.ablations[ablation]
        return list(dict.fromkeys([options["like"], *options.get("against", [])]))

    def check_run(self, manifest: dict[str, Any]) -> None:
        """
        Refuse a finished run whose arm has changed since.

        Raises:
            `ValueError`: If the run's arm differs from the arm in the experiment.
        """
        name = manifest["arm"]
        if manifest["projector"]["arm"] != asdict(self.arm(name)):
            raise ValueError(
                f"`{name}` has changed since its finished run with seed {manifest['seed']}; restore it, or remove the "
                "manifests of its runs to train it again."
            )

    def resolve_projector(self, arm: Arm, audio_config, text_config) -> dict[str, Any]:
        """Fields of the projector's configuration, with the width that `match_parameters` determines."""
        if arm.match_parameters is None:
            return arm.projector
        reference = LlmAsrConfig(
            audio_config=audio_config,
            text_config=text_config,
            projector_config=LlmAsrProjectorConfig(**self.arm(arm.match_parameters).projector),
        )
        options = {name: value for name, value in arm.projector.items() if name != "projector_type"}
        options.pop("intermediate_size", None)
        matched = match_parameters(arm.projector["projector_type"], reference, "total", **options)
        return {**arm.projector, "intermediate_size": matched.intermediate_size}


def read_yaml(file: Path) -> dict[str, Any]:
    """Read the fields of a file and of its `base`."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if isinstance(content.get("ablations"), str):
        content["ablations"] = yaml.safe_load((file.parent / content["ablations"]).read_text(encoding="utf-8"))
    if "base" in content:
        content = {**read_yaml(file.parent / content.pop("base")), **content}
    return content


def load_experiment(file: str | Path) -> Experiment:
    """
    Read an experiment.

    Args:
        file (`str` or `Path`): YAML file. `base` may name another file in the same folder, whose fields are the defaults.

    Returns:
        [`Experiment`]

    Raises:
        `ValueError`: If a field is unknown, missing or invalid.
    """
    content = read_yaml(Path(file))
    names = {spec.name for spec in fields(Experiment)}
    unknown = sorted(set(content) - names)
    if unknown:
        raise ValueError(f"{file} has unknown fields {unknown}; correct or remove them.")
    try:
        return Experiment(**content)
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from error
