"""The training program, which turns a recipe into a checkpoint."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from peft import PeftModel
from transformers import BitsAndBytesConfig, HfArgumentParser, set_seed

from .. import registration  # noqa: F401 (registers the processor with the model)
from ..datasets_asr import load_asr_dataset
from ..evaluation.compute_metrics import ErrorRates
from ..keyword_lists import KeywordLists

# This import registers the classes with Transformers. Composing a model looks them up there.
from ..registration import LlmAsrForConditionalGeneration, LlmAsrProcessor
from .arguments import DataArguments, LlmAsrTrainingArguments, ModelArguments
from .audio_use import AudioUseCallback
from .augmentation import Augmentation, SpecAugment, SpeedPerturbation
from .compiled_encoder import compile_audio_tower
from .data_collator import LlmAsrDataCollator
from .data_mixing import StreamingMixture, load_mixture
from .expert_usage_callback import ExpertUsageCallback
from .feature_cache import cache_audio_hidden_states
from .filters import RowFilters
from .interruption import GracefulExit, ManifestCallback, last_complete_checkpoint
from .keyword_sampling import KeywordSampling
from .lora import add_lora
from .run_record import RunRecord
from .sample_transcripts import SampleTranscripts, SampleTranscriptsCallback
from .trainer import LlmAsrTrainer, check_draft_head
from .watching import WatchingCallback


def read_recipe(file: Path) -> dict:
    """Read the options of a file. They override those of the file that `include` names, relative to this file."""
    text = file.read_text(encoding="utf-8")
    recipe = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    if not isinstance(recipe, dict):
        raise ValueError(f"{file} must hold options with their values, got {recipe!r:.40}.")
    included = recipe.pop("include", None)
    return recipe if included is None else {**read_recipe(file.parent / included), **recipe}


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, LlmAsrTrainingArguments]:
    """
    Parse the options of a recipe and of flags. The first argument may be a recipe, and flags override its options. Mappings
    (`--projector`, `--lora_config`) override single entries.

    Raises:
        `ValueError`: If an option is unknown or has an invalid value.
    """
    # The parser's own name for types of dataclasses is not one for type checkers.
    groups = (ModelArguments, DataArguments, LlmAsrTrainingArguments)
    parser = HfArgumentParser(groups)  # type: ignore[arg-type]
    recipe = {}
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        recipe = read_recipe(Path(argv[0]))
        known = {field.name for group in groups for field in fields(group) if field.init}
        unknown = set(recipe) - known
        if unknown:
            raise ValueError(f"{argv[0]} has unknown options {sorted(unknown)}; correct or remove them.")
        parser.set_defaults(**recipe)
        argv = argv[1:]
    model_args, data_args, training_args = parser.parse_args_into_dataclasses(argv)
    for name in ("projector", "lora_config"):
        if isinstance(recipe.get(name), dict):
            setattr(model_args, name, {**recipe[name], **getattr(model_args, name)})
    return model_args, data_args, training_args


def load_model(
    args: ModelArguments, quantization_config: BitsAndBytesConfig | None = None
) -> tuple[LlmAsrForConditionalGeneration, LlmAsrProcessor]:
    if args.model is not None:
        processor = LlmAsrProcessor.from_pretrained(args.model)
        model = LlmAsrForConditionalGeneration.from_pretrained(args.model, quantization_config=quantization_config)
        if args.encoder_attention is not None:
            model.config.set_encoder_attention(**args.attention_options())
            if args.encoder_attention == "chunked":
                processor.log_mel_maximum = "running"
        processor.check_model(model.config)
        if args.freeze_audio:
            model.freeze_audio_tower()
        if args.freeze_text:
            model.freeze_language_model()
        if not args.train_in_saved_dtype:
            model.cast_trainable_to_float32()
        return model, processor
    # `ModelArguments` has checked and parsed them.
    assert args.audio_model is not None
    assert args.text_model is not None
    assert isinstance(args.projector, dict)
    attention = {} if args.encoder_attention is None else args.attention_options()
    processor = LlmAsrProcessor.from_audio_text_pretrained(
        args.audio_model,
        args.text_model,
        log_mel_maximum="running" if args.encoder_attention == "chunked" else "recording",
    )
    model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(
        args.audio_model,
        args.text_model,
        projector_type=args.projector_type,
        freeze_audio=args.freeze_audio,
        freeze_text=args.freeze_text,
        encoder_padding=args.encoder_padding,
        **attention,
        processor=processor,
        audio_kwargs={"dtype": "auto"} if args.train_in_saved_dtype else None,
        text_kwargs={"quantization_config": quantization_config}
        | ({"dtype": "auto"} if args.train_in_saved_dtype else {}),
        **args.projector,
    )
    return model, processor


def load_datasets(
    data_args: DataArguments, training_args: LlmAsrTrainingArguments, filters: RowFilters
) -> dict[str, Dataset | StreamingMixture]:
    """Load the datasets for `"train"` and `"eval"`, if the arguments name any. `filters` apply to `train_datasets`."""
    columns = (data_args.audio_column, data_args.text_column)
    # `DataArguments` and `TrainingArguments` have parsed them. Their types are those of the command line.
    train_datasets: Any = data_args.train_datasets
    eval_datasets: Any = data_args.eval_datasets
    accelerator_config: Any = training_args.accelerator_config
    datasets: dict[str, Dataset | StreamingMixture] = {}
    if data_args.train_dataset is not None:
        source, split = data_args.train_dataset, data_args.train_split
        datasets["train"] = load_asr_dataset(source, data_args.dataset_name, split, *columns)
    if data_args.eval_dataset is not None:
        source, split = data_args.eval_dataset, data_args.eval_split
        datasets["eval"] = load_asr_dataset(source, data_args.dataset_name, split, *columns)
    if train_datasets:
        datasets["train"] = load_mixture(
            train_datasets,
            data_args.temperature,
            training_args.seed,
            filters,
            data_args.shuffle_buffer_size,
        )
        print(filters.report)
    if eval_datasets:
        datasets["eval"] = load_mixture(eval_datasets)
    if isinstance(datasets.get("train"), StreamingMixture):
        # By default one process would read all rows and concatenate batches of different lengths.
        accelerator_config.dispatch_batches = False
    return datasets


def main(argv: list[str]) -> None:
    """Train with the options of a command line; see [`parse_arguments`]."""
    train(*parse_arguments(argv))


def list_keywords(dataset: Any, data_args: DataArguments) -> KeywordLists:
    """The words of a training set, for keywords of prompts."""
    has_language = data_args.language_column in dataset.column_names
    # The collator names rows without a transcript.
    texts = [text or "" for text in dataset[data_args.text_column]]
    return KeywordLists(texts, dataset[data_args.language_column] if has_language else None)


def train(model_args: ModelArguments, data_args: DataArguments, training_args: LlmAsrTrainingArguments) -> None:
    """
    Compose or load a model, train it on datasets, and save the checkpoint in `training_args.output_dir`.

    Raises:
        `SystemExit`: With 128 plus the number of the signal, if a signal has ended training.
        `ValueError`: If options contradict each other, or a dataset cannot be used.
    """
    ManifestCallback.check_arguments(training_args)
    set_seed(training_args.seed)
    filters = RowFilters(
        data_args.min_duration,
        data_args.max_duration,
        data_args.min_characters_per_second,
        data_args.max_characters_per_second,
    )
    datasets = load_datasets(data_args, training_args, filters)
    if training_args.do_train and "train" not in datasets:
        raise ValueError("Pass `train_dataset` or `train_datasets` to train.")
    streams = any(isinstance(dataset, StreamingMixture) for dataset in datasets.values())
    for option in ("feature_cache", "max_keywords"):
        if streams and getattr(data_args, option):
            raise ValueError(f"`{option}` needs datasets that do not stream; set `streaming: false`.")
    if data_args.max_keywords and "train" not in datasets:
        raise ValueError("`max_keywords` is for training; pass `train_dataset`, or leave it out.")

    quantization_config = None
    if model_args.load_in_4bit or model_args.load_in_8bit:
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=model_args.load_in_4bit,
            load_in_8bit=model_args.load_in_8bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16" if training_args.bf16 else None,
        )
    # The model, or a `PeftModel` of it.
    model: Any
    model, processor = load_model(model_args, quantization_config)
    # Fail before hours of work.
    if training_args.draft_only:
        check_draft_head(model)
    if data_args.max_keywords:
        processor.apply_transcription_request("", keywords=["keyword"], tokenize=False)
    model.to(training_args.device)
    if model_args.compile_audio:
        compile_audio_tower(model)
    if data_args.feature_cache is not None:
        in_use: list[str] = []
        for role, dataset in datasets.items():
            datasets[role] = cache_audio_hidden_states(
                dataset,
                model,
                processor,
                data_args.feature_cache,
                data_args.audio_column,
                max_gigabytes=data_args.feature_cache_gigabytes,
                in_use=in_use,
            )
            in_use += datasets[role]["audio_hidden_states"]
    if model_args.lora_rank:
        lora_config: Any = model_args.lora_config
        rank, alpha, dropout = model_args.lora_rank, model_args.lora_alpha, model_args.lora_dropout
        model = add_lora(
            model,
            rank,
            alpha,
            dropout,
            autocast_adapter_dtype=not model_args.train_in_saved_dtype,
            **lora_config,
        )

    collator = LlmAsrDataCollator(
        processor,
        audio_column=data_args.audio_column,
        text_column=data_args.text_column,
        language_column=data_args.language_column,
        language_dropout=data_args.language_dropout,
        translation_share=data_args.translation_share,
        hidden_states_column=None if data_args.feature_cache is None else "audio_hidden_states",
        row_ids=True,
    )
    augmentation = None
    if data_args.speed_perturbation or data_args.spec_augment:
        augmentation = Augmentation(
            SpeedPerturbation(data_args.speed_perturbation) if data_args.speed_perturbation else None,
            SpecAugment(processor, on_hidden_states=data_args.feature_cache is not None)
            if data_args.spec_augment
            else None,
            training_args.seed,
        )
    keyword_sampling = None
    if data_args.max_keywords:
        keyword_sampling = KeywordSampling(
            list_keywords(datasets["train"], data_args), data_args.max_keywords, training_args.seed
        )
    languages = None
    evaluated = datasets.get("eval")
    if isinstance(evaluated, Dataset) and data_args.language_column in evaluated.column_names:
        languages = evaluated[data_args.language_column]
    samples = SampleTranscripts(ErrorRates(processor, languages), processor)
    trainer = LlmAsrTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=datasets.get("train"),
        eval_dataset=datasets.get("eval"),
        processing_class=processor,
        compute_metrics=samples,
        augmentation=augmentation,
        keyword_sampling=keyword_sampling,
    )

    graceful_exit = GracefulExit()
    record = RunRecord(trainer, model_args, data_args)
    watching = (WatchingCallback(trainer), SampleTranscriptsCallback(trainer, samples))
    for callback in (graceful_exit, record, ManifestCallback(), *watching):
        trainer.add_callback(callback)
    if "eval" in datasets and training_args.per_device_eval_batch_size > 1:
        trainer.add_callback(AudioUseCallback(trainer))
    if model.config.projector_config.uses_experts:
        trainer.add_callback(ExpertUsageCallback(trainer))
    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint
        if checkpoint in ("true", "True", True):
            checkpoint = last_complete_checkpoint(str(training_args.output_dir))
        with graceful_exit:
            trainer.train(resume_from_checkpoint=checkpoint)
        if streams:
            print(filters.report)
        if graceful_exit.signal_number is not None:
            # The exit code of a program that a signal has ended tells a scheduler that the run is not finished.
            sys.exit(128 + graceful_exit.signal_number)
        if model_args.lora_rank:
            adapter = str(Path(str(training_args.output_dir)) / "adapter")
            trainer.save_model(adapter)
            model = trainer.accelerator.unwrap_model(trainer.model)
            if quantization_config is not None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
                # The weights in memory are quantized or sharded, so load the original ones.
                trainer.accelerator.wait_for_everyone()
                model = PeftModel.from_pretrained(load_model(model_args)[0].to(training_args.device), adapter)
            trainer.model = model = model.merge_and_unload()
            # With DeepSpeed or FSDP, the `Trainer` would save the wrapped model instead of the merged one.
            if trainer.is_world_process_zero():
                model.save_pretrained(training_args.output_dir)
                processor.save_pretrained(training_args.output_dir)
        else:
            trainer.save_model(training_args.output_dir)
        trainer.save_state()
    if training_args.do_eval and "eval" in datasets:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)


__all__ = ["main", "parse_arguments", "train"]
