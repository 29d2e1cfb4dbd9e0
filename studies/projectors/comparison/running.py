"""Trains and tests one run, that is, a projector with a seed and a tuning, and writes its manifest."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from comparison.experiment import Arm, Experiment, Tuning
from comparison.manifest import (
    describe_dataset,
    describe_machine,
    describe_projector,
    describe_provenance,
    hash_file,
    hash_json,
    hash_sources,
    hash_weights,
    list_differences,
    write_json,
)
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoConfig, TrainerCallback, set_seed

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.datasets_asr import load_asr_dataset
from llm_asr.evaluation.compute_metrics import ErrorRates
from llm_asr.evaluation.projector_cost import projector_cost
from llm_asr.modeling.expert_balance import count_expert_load
from llm_asr.modeling.initialization import find_initializers
from llm_asr.training.arguments import LlmAsrTrainingArguments
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.expert_usage_callback import ExpertUsageCallback
from llm_asr.training.feature_cache import cache_audio_hidden_states
from llm_asr.training.interruption import GracefulExit, ManifestCallback, last_complete_checkpoint
from llm_asr.training.lora import add_lora
from llm_asr.training.trainer import LlmAsrTrainer
from llm_asr.training.watching import WatchingCallback


MODEL_OPTIONS = ("freeze_audio", "freeze_text", "encoder_padding")
LORA_OPTIONS = {"lora_rank": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}

# Logged quantities that the manifest keeps for learning curves.
CURVES = ("lm_loss", "quantity_loss", "ctc_loss", "router_aux_loss", "length_error", "eval_wer", "expert_entropy")
CURVES += ("dead_experts", "ctc_skipped")

# Number of rows of the training data for setting the loudness of projectors.
LOUDNESS_ROWS = 32

STEPS_NAME = "steps.jsonl"
FIXED_NAME = "fixed.json"


class Interrupted(Exception):
    """A signal has ended a run, which has saved a checkpoint."""

    def __init__(self, signal_number: int):
        self.signal_number = signal_number


@dataclass
class Data:
    """
    The datasets of an experiment. Languages are stored separately, because prompts do not name them.

    `sources` is a checksum of the loaded code. The files may change while runs continue.
    """

    datasets: dict[str, Dataset]
    languages: dict[str, list[str | None]]
    description: dict[str, Any]
    sources: str


def load_data(experiment: Experiment) -> Data:
    """Open and describe all datasets. With a feature cache, run the frozen encoder over them."""
    sources = hash_sources()
    paths = {
        "train": experiment.train_dataset,
        "validation": experiment.validation_dataset,
        **experiment.test_datasets,
    }
    datasets = {name: load_asr_dataset(path) for name, path in paths.items()}
    description = {name: describe_dataset(dataset) for name, dataset in datasets.items()}
    if experiment.feature_cache is not None:
        model, processor = compose_model(experiment, {"projector_type": "conv"})
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        for name, dataset in datasets.items():
            datasets[name] = cache_audio_hidden_states(dataset, model, processor, experiment.feature_cache)
    languages = {}
    for name, dataset in datasets.items():
        known = "language" in dataset.column_names
        languages[name] = dataset["language"][:] if known else [None] * len(dataset)
        datasets[name] = dataset.remove_columns("language") if known else dataset
    return Data(datasets, languages, description, sources)


def compose_model(
    experiment: Experiment, projector: dict[str, Any]
) -> tuple[LlmAsrForConditionalGeneration, LlmAsrProcessor]:
    """Compose the model with a projector, and its processor."""
    audio, text = experiment.model["audio_model"], experiment.model["text_model"]
    processor = LlmAsrProcessor.from_audio_text_pretrained(audio, text)
    options = {name: experiment.model[name] for name in MODEL_OPTIONS if name in experiment.model}
    model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(
        audio, text, processor=processor, **options, **projector
    )
    return model, processor


@torch.no_grad()
def initialize_projector(model: LlmAsrForConditionalGeneration, seed: int) -> None:
    """
    Draw the weights of each module of the projector by seed and name, so that common modules of two projectors start equal.
    """
    parts = {"projector": model.model.projector, "draft_head": model.draft_head}
    for part, root in parts.items():
        for name, module, init_weights in () if root is None else find_initializers(root, model._init_weights):
            for parameter in module.parameters(recurse=False):
                # Transformers does not initialise a parameter again while this flag is set.
                parameter._is_hf_initialized = False
            torch.manual_seed(zlib.crc32(f"{seed} {part} {name}".encode()))
            init_weights(module)


@torch.no_grad()
def set_loudness(model: LlmAsrForConditionalGeneration, batch: dict[str, torch.Tensor], loudness: float) -> float:
    """
    Scale the projector's last layer so that the root mean square of its embeddings of a batch is `loudness` times that of the
    language model's embeddings. arXiv 1511.06422 initialises every layer in a similar way, to a variance of 1.

    Args:
        model ([`LlmAsrForConditionalGeneration`]): The model, which is changed in place.
        batch (`dict`): A collated batch of recordings.
        loudness (`float`): Wanted ratio of the root mean squares.

    Returns:
        `float`: Factor of the weights.
    """
    projector = model.model.projector
    if model.config.projector_config.uses_experts:
        layers = [projector.moe.experts.down_proj]
        if projector.moe.shared_experts is not None:
            layers += projector.moe.shared_experts[-1].parameters()
    else:
        layers = list(projector.mlp[-1].parameters())
    embeds = model.eval().get_audio_features(**select_audio(batch)).pooler_output
    text_embeds = model.get_input_embeddings().weight
    scale = loudness * (text_embeds.float().square().mean() / embeds.float().square().mean()).sqrt().item()
    for parameter in layers:
        parameter.mul_(scale)
    return scale


def select_audio(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Select the arguments of `get_audio_features` from a batch."""
    return {name: batch[name] for name in batch if name.startswith(("audio_", "input_f"))}


class TargetCollator:
    """
    A collator with target lengths in words or characters instead of tokens.

    Args:
        collator ([`LlmAsrDataCollator`]): Creates the batches.
        cif_target (`str`): `"token"`, `"word"` or `"character"`.
    """

    def __init__(self, collator: LlmAsrDataCollator, cif_target: str):
        self.collator = collator
        self.cif_target = cif_target

    def __call__(self, rows: list[dict]):
        batch = self.collator(rows)
        if self.cif_target != "token":
            lengths = [count_targets(row[self.collator.text_column], self.cif_target) for row in rows]
            batch["target_lengths"] = torch.tensor(lengths)
        return batch


def count_targets(text: str, cif_target: str) -> int:
    """Number of words, or of characters including the spaces between words."""
    words = text.split()
    return len(words) if cif_target == "word" else len(" ".join(words))


class ComparisonTrainer(LlmAsrTrainer):
    """A trainer that records the rows of a step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.step_rows: list = []

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            self.step_rows.append(inputs["row_ids"])
        return super().compute_loss(model, inputs, *args, **kwargs)


class StepRecord(TrainerCallback):
    """
    Writes a line for each step to `steps.jsonl`, with a checksum of its rows in order and its duration in seconds. A resumed
    run continues the file from its step.
    """

    def __init__(self, trainer: ComparisonTrainer):
        self.trainer = trainer
        self.file = Path(trainer.args.output_dir) / STEPS_NAME
        self.started = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        lines = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("".join(lines[: state.global_step]))

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()
        self.trainer.step_rows = []

    def on_step_end(self, args, state, control, **kwargs):
        line = {"rows": hash_json(self.trainer.step_rows), "seconds": time.perf_counter() - self.started}
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


@torch.no_grad()
def transcribe(
    model: LlmAsrForConditionalGeneration,
    processor: LlmAsrProcessor,
    collator: TargetCollator,
    dataset: Dataset,
    languages: list[str | None],
    experiment: Experiment,
) -> tuple[list[dict], float]:
    """
    Decode a dataset greedily.

    Returns:
        `tuple`: A dict for each row with `row`, `language`, `reference`, `hypothesis`, `audio_tokens`, `target_tokens`,
        `seconds` of audio and, with experts, `expert_load`; and the duration of `generate` in seconds.
    """
    model.eval()
    outputs, seconds = [], 0.0
    size = experiment.decode_batch_size
    for start in tqdm(range(0, len(dataset), size), desc="Transcribing", unit="batch", leave=False):
        rows = [dataset[index] for index in range(start, min(start + size, len(dataset)))]
        batch = collator(rows).to(model.device)
        targets = batch.pop("target_lengths").tolist()
        batch.pop("row_ids")
        started = time.perf_counter()
        # `generate` cuts the labels off the prompts, so they do not leak.
        sequences = model.generate(**batch, max_new_tokens=experiment.max_new_tokens)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds += time.perf_counter() - started
        audio = model.get_audio_features(**select_audio(batch))
        lengths = audio.audio_lengths.tolist()
        loads: list = [None] * len(rows)
        if audio.router_logits is not None:
            # There are router logits for each frame, or for each recording.
            counts = lengths if len(audio.router_logits) == sum(lengths) else [1] * len(rows)
            routing = zip(audio.router_logits.split(counts), audio.selected_experts.split(counts), strict=True)
            loads = [[round(load, 4) for load in count_expert_load(*frames).tolist()] for frames in routing]
        frames = audio.num_frames.tolist()
        for index, text in enumerate(processor.batch_decode(sequences)):
            output = {
                "row": rows[index]["row"],
                "language": languages[start + index],
                "reference": rows[index]["text"],
                "hypothesis": text,
                "audio_tokens": lengths[index],
                "target_tokens": targets[index],
                "seconds": round(frames[index] / model.config.audio_frame_rate, 3),
            }
            outputs.append(output if loads[index] is None else {**output, "expert_load": loads[index]})
    return outputs, seconds


def write_outputs(file: Path, outputs: list[dict]) -> None:
    """Write outputs as compressed JSON Lines. Equal outputs give equal bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(output, ensure_ascii=False) + "\n" for output in outputs)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def parse_outputs(contents: bytes) -> list[dict]:
    """Read the contents of a file that [`write_outputs`] wrote."""
    return [json.loads(line) for line in gzip.decompress(contents).decode().splitlines()]


def describe_fixed(experiment: Experiment, data: Data, processor: LlmAsrProcessor) -> dict[str, Any]:
    """Properties that must be equal in all runs, without the initial weights."""
    return {
        "settings": {
            "model": experiment.model,
            "training": experiment.training,
            "projector": experiment.projector,
            "search_seed": experiment.search_seed,
            "decoding": {
                "strategy": "greedy",
                "max_new_tokens": experiment.max_new_tokens,
                "batch_size": experiment.decode_batch_size,
            },
        },
        "data": data.description,
        "prompt": processor.tokenizer.decode(processor.transcription_prompt_ids),
        "tokenizer": hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "sources": data.sources,
        "machine": describe_machine(experiment.threads),
    }


def pin(file: Path, content: Any, place: str, advice: str) -> None:
    """
    Write `content` to `file`, or compare it with the existing file.

    Raises:
        `ValueError`: If there are differences. The error names up to ten of them, and ends with `advice`.
    """
    content = json.loads(json.dumps(content))
    if not file.exists():
        write_json(file, content)
        return
    differences = list(list_differences(json.loads(file.read_text(encoding="utf-8")), content, place))
    if differences:
        raise ValueError(f"{file} was written with other {', '.join(differences[:10])}; {advice}.")


def run(
    experiment: Experiment,
    data: Data,
    arm: Arm,
    seed: int,
    tuning: Tuning,
    name: str,
    tests: bool = True,
    callbacks: tuple[Callable[[ComparisonTrainer], TrainerCallback], ...] = (),
) -> dict[str, Any]:
    """
    Train and test one arm with one seed. An interrupted run continues from its checkpoint.

    Args:
        experiment ([`Experiment`]): The experiment.
        data ([`Data`]): Datasets of the experiment.
        arm ([`Arm`]): The arm to train.
        seed (`int`): Seed of the projector's weights and of the order of the data.
        tuning ([`Tuning`]): Learning rate and loudness.
        name (`str`): Name of the manifest and the outputs in `experiment.results`, and of the folder in `experiment.runs`.
        tests (`bool`, *optional*, defaults to `True`): Whether to transcribe the test sets.
        callbacks (`tuple`, *optional*): Functions that create further callbacks from the trainer.

    Returns:
        `dict`: The manifest, which is also written to disk.

    Raises:
        [`Interrupted`]: If a signal has ended training.
        `FloatingPointError`: If the loss is not finite.
        `ValueError`: If the run cannot be compared with the finished runs, or differs from the interrupted run.
    """
    torch.set_num_threads(experiment.threads)
    folder = experiment.runs / name
    configs = [AutoConfig.from_pretrained(experiment.model[part]) for part in ("audio_model", "text_model")]
    projector = experiment.resolve_projector(arm, *configs)
    model, processor = compose_model(experiment, projector)
    hidden_states = None if experiment.feature_cache is None else "audio_hidden_states"
    collator = TargetCollator(
        LlmAsrDataCollator(processor, hidden_states_column=hidden_states, row_ids=True), arm.cif_target
    )
    initialize_projector(model, seed)
    initial_weights = hash_weights(model)
    del initial_weights["projector"]
    manifest = {
        "arm": arm.name,
        "seed": seed,
        **asdict(tuning),
        "projector": {
            "arm": asdict(arm),
            "config": {field: model.config.projector_config.to_dict()[field] for field in sorted(projector)},
            "strides": model.config.projector_config.conv_strides,
        },
        "initial_projector": describe_projector(model.model.projector),
    }
    if tuning.loudness is not None:
        train = data.datasets["train"]
        rows = train.select(range(0, len(train), max(1, len(train) // LOUDNESS_ROWS)))
        manifest["output_scale"] = set_loudness(model, collator(list(rows)), tuning.loudness)
    fixed = {**describe_fixed(experiment, data, processor), "initial_weights": initial_weights}
    # Check this before the training. The report checks all runs again.
    pin(
        experiment.results / FIXED_NAME,
        fixed,
        "fixed",
        "restore them, or start again with other folders for `results` and `runs`",
    )
    pin(folder / "run.json", {**manifest, "fixed": fixed}, "run", f"remove {folder} to train it again")
    cost_config = model.config

    if experiment.model.get("lora_rank"):
        set_seed(seed)
        lora = {option: experiment.model[name] for name, option in LORA_OPTIONS.items() if name in experiment.model}
        model = add_lora(model, **lora)
    language_model = hash_weights(model)["language_model"]
    arguments = LlmAsrTrainingArguments(
        output_dir=str(folder),
        seed=seed,
        learning_rate=tuning.learning_rate,
        generation_max_length=experiment.max_new_tokens,
        per_device_eval_batch_size=experiment.decode_batch_size,
        **{"save_strategy": "no", "report_to": "none", **experiment.training},
    )
    trainer = ComparisonTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=data.datasets["train"],
        eval_dataset=data.datasets["validation"],
        processing_class=processor,
        compute_metrics=ErrorRates(processor, data.languages["validation"]),
    )
    steps, graceful_exit = StepRecord(trainer), GracefulExit()
    for callback in (steps, graceful_exit, ManifestCallback(), WatchingCallback(trainer)):
        trainer.add_callback(callback)
    if cost_config.projector_config.uses_experts:
        trainer.add_callback(ExpertUsageCallback(trainer))
    for make_callback in callbacks:
        trainer.add_callback(make_callback(trainer))
    # The number of random draws so far depends on the projector, so set the seed again.
    set_seed(seed)
    with graceful_exit:
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
    if graceful_exit.signal_number is not None:
        raise Interrupted(graceful_exit.signal_number)
    validation = trainer.evaluate()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if experiment.model.get("lora_rank"):
        model = model.merge_and_unload()

    results: dict[str, Any] = {
        "validation": {key: value for key, value in validation.items() if key.startswith(("eval_wer", "eval_cer"))},
        "training_seconds": sum(line["seconds"] for line in steps.lines),
        "steps": trainer.state.global_step,
        "curves": [
            {key: entry[key] for key in ("step", *CURVES) if key in entry}
            for entry in trainer.state.log_history
            if any(key in entry for key in CURVES)
        ],
    }
    outputs = {}
    for test in experiment.test_datasets if tests else ():
        found, seconds = transcribe(model, processor, collator, data.datasets[test], data.languages[test], experiment)
        file = experiment.results / f"{name}.{test}.jsonl.gz"
        write_outputs(file, found)
        outputs[test] = {"file": file.relative_to(experiment.results).as_posix(), "sha256": hash_file(file)}
        rate = sum(output["audio_tokens"] for output in found) / sum(output["seconds"] for output in found)
        cost = projector_cost(cost_config, rate)
        results[test] = {
            "decoding_seconds": seconds,
            "tokens_per_second": rate,
            "total_parameters": cost.total_parameters,
            "active_parameters": cost.active_parameters,
            "flops_per_second": cost.flops_per_second,
        }
    manifest.update(
        fixed=fixed,
        fixed_by_seed={
            # Includes the adapters of LoRA.
            "initial_language_model": language_model,
            "data_order": hash_json([line["rows"] for line in steps.lines]),
            "steps": trainer.state.global_step,
        },
        final_weights=hash_weights(model),
        provenance=describe_provenance(),
        outputs=outputs,
        results=results,
    )
    write_json(experiment.results / f"{name}.json", manifest)
    # A finished run does not need its checkpoints.
    shutil.rmtree(folder, ignore_errors=True)
    return manifest
