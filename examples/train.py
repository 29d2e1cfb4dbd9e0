"""
Train an LLM-ASR model.

    python examples/train.py recipe.yaml [--learning_rate 1e-4 ...]
    accelerate launch examples/train.py recipe.yaml

Every field of `ModelArguments`, `DataArguments` and `LlmAsrTrainingArguments` can stand in the file or be a flag; flags
win, and mappings (`--projector`, `--lora_config`) win by what they hold. `--resume_from_checkpoint true` goes on from the last checkpoint in `output_dir`.
"""

import json
import sys
from pathlib import Path

import yaml
from datasets import Dataset
from peft import PeftModel
from transformers import BitsAndBytesConfig, HfArgumentParser, set_seed

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor
from llm_asr.evaluation.metrics import ErrorRates
from llm_asr.training.arguments import DataArguments, LlmAsrTrainingArguments, ModelArguments
from llm_asr.training.augmentation import Augmentation, SpecAugment, SpeedPerturbation
from llm_asr.training.compiled_encoder import compile_audio_tower
from llm_asr.training.data_collator import LlmAsrDataCollator
from llm_asr.training.data_mixing import StreamingMixture, load_mixture
from llm_asr.training.datasets_asr import load_asr_dataset
from llm_asr.training.expert_usage_callback import ExpertUsageCallback
from llm_asr.training.feature_cache import cache_audio_hidden_states
from llm_asr.training.filters import RowFilters
from llm_asr.training.interruption import GracefulExit, ManifestCallback, last_complete_checkpoint
from llm_asr.training.lora import add_lora
from llm_asr.training.run_record import RunRecord
from llm_asr.training.trainer import LlmAsrTrainer
from llm_asr.training.watching import SampleTranscripts, WatchingCallback


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, LlmAsrTrainingArguments]:
    parser = HfArgumentParser((ModelArguments, DataArguments, LlmAsrTrainingArguments))
    recipe = {}
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        text = Path(argv[0]).read_text(encoding="utf-8")
        recipe = json.loads(text) if argv[0].endswith(".json") else yaml.safe_load(text)
        known = {action.dest for action in parser._actions}
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
        if args.freeze_audio:
            model.freeze_audio_tower()
        if args.freeze_text:
            model.freeze_language_model()
        return model, processor
    processor = LlmAsrProcessor.from_audio_text_pretrained(args.audio_model, args.text_model)
    model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(
        args.audio_model,
        args.text_model,
        projector_type=args.projector_type,
        freeze_audio=args.freeze_audio,
        freeze_text=args.freeze_text,
        encoder_padding=args.encoder_padding,
        processor=processor,
        text_kwargs={"quantization_config": quantization_config},
        **args.projector,
    )
    return model, processor


def load_datasets(
    data_args: DataArguments, training_args: LlmAsrTrainingArguments, filters: RowFilters
) -> dict[str, Dataset | StreamingMixture]:
    """`"train"` and `"eval"`, as far as they are given; `filters` are for mixtures to train on."""
    columns = (data_args.audio_column, data_args.text_column)
    datasets: dict[str, Dataset | StreamingMixture] = {}
    if data_args.train_dataset is not None:
        source, split = data_args.train_dataset, data_args.train_split
        datasets["train"] = load_asr_dataset(source, data_args.dataset_name, split, *columns)
    if data_args.eval_dataset is not None:
        source, split = data_args.eval_dataset, data_args.eval_split
        datasets["eval"] = load_asr_dataset(source, data_args.dataset_name, split, *columns)
    if data_args.train_datasets:
        datasets["train"] = load_mixture(
            data_args.train_datasets,
            data_args.temperature,
            training_args.seed,
            filters,
            data_args.shuffle_buffer_size,
        )
        print(filters.report)
    if data_args.eval_datasets:
        datasets["eval"] = load_mixture(data_args.eval_datasets)
    if isinstance(datasets.get("train"), StreamingMixture):
        # Otherwise one process would read everything, and join batches of different lengths.
        training_args.accelerator_config.dispatch_batches = False
    return datasets


def main(argv: list[str]) -> None:
    model_args, data_args, training_args = parse_arguments(argv)
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
    if streams and data_args.feature_cache is not None:
        raise ValueError("`feature_cache` needs datasets that do not stream; set `streaming: false`.")

    quantization_config = None
    if model_args.load_in_4bit or model_args.load_in_8bit:
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=model_args.load_in_4bit,
            load_in_8bit=model_args.load_in_8bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16" if training_args.bf16 else None,
        )
    model, processor = load_model(model_args, quantization_config)
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
        rank, alpha, dropout = model_args.lora_rank, model_args.lora_alpha, model_args.lora_dropout
        model = add_lora(model, rank, alpha, dropout, **model_args.lora_config)

    collator = LlmAsrDataCollator(
        processor,
        audio_column=data_args.audio_column,
        text_column=data_args.text_column,
        language_column=data_args.language_column,
        language_dropout=data_args.language_dropout,
        hidden_states_column=None if data_args.feature_cache is None else "audio_hidden_states",
        row_ids=True,
    )
    augmentation = None
    if data_args.speed_perturbation or data_args.spec_augment:
        augmentation = Augmentation(
            SpeedPerturbation(data_args.speed_perturbation) if data_args.speed_perturbation else None,
            SpecAugment(processor.feature_extractor) if data_args.spec_augment else None,
            training_args.seed,
        )
    languages = None
    if "eval" in datasets and data_args.language_column in datasets["eval"].column_names:
        languages = datasets["eval"][data_args.language_column]
    trainer = LlmAsrTrainer(
        model=model,
        args=training_args,
        data_collator=collator,
        train_dataset=datasets.get("train"),
        eval_dataset=datasets.get("eval"),
        processing_class=processor,
        compute_metrics=SampleTranscripts(ErrorRates(processor, languages), processor),
        augmentation=augmentation,
    )

    graceful_exit = GracefulExit()
    record = RunRecord(trainer, model_args, data_args)
    for callback in (graceful_exit, record, ManifestCallback(), WatchingCallback(trainer)):
        trainer.add_callback(callback)
    if model.config.projector_config.uses_experts:
        trainer.add_callback(ExpertUsageCallback(trainer))
    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint
        if checkpoint in ("true", "True", True):
            checkpoint = last_complete_checkpoint(training_args.output_dir)
        trainer.train(resume_from_checkpoint=checkpoint)
        if streams:
            print(filters.report)
        if graceful_exit.signal_number is not None:
            # As a program that a signal ended, so that nobody takes the run for finished.
            sys.exit(128 + graceful_exit.signal_number)
        if model_args.lora_rank:
            adapter = str(Path(training_args.output_dir) / "adapter")
            trainer.save_model(adapter)
            model = trainer.accelerator.unwrap_model(trainer.model)
            if quantization_config is not None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
                # Weights at hand are rounded or not whole.
                trainer.accelerator.wait_for_everyone()
                model = PeftModel.from_pretrained(load_model(model_args)[0].to(training_args.device), adapter)
            trainer.model = model = model.merge_and_unload()
            # The `Trainer` would save what was trained in place of what was merged if an engine holds it.
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


if __name__ == "__main__":
    main(sys.argv[1:])
