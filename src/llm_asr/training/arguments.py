"""What `examples/train.py` can be told, on the command line or in a YAML or JSON file."""

import json
import math
from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments


@dataclass
class ModelArguments:
    """Which parts to compose, or which checkpoint to go on from."""

    model: str | None = field(
        default=None, metadata={"help": "LLM-ASR checkpoint to start from, instead of composing one."}
    )
    audio_model: str | None = field(default=None, metadata={"help": "Speech encoder: a folder or a Hub id."})
    text_model: str | None = field(default=None, metadata={"help": "Causal language model: a folder or a Hub id."})
    projector_type: str = field(default="moe_cif", metadata={"help": "One of conv, moe, cif and moe_cif."})
    # With `None` among its types, Transformers' parser hands on what a flag says.
    projector: dict | str | None = field(
        default_factory=dict, metadata={"help": "Further fields of `LlmAsrProjectorConfig`, as JSON."}
    )
    encoder_padding: str = field(
        default="longest", metadata={"help": "Run the speech encoder at the batch's length, or at max_length."}
    )
    freeze_audio: bool = field(default=True, metadata={"help": "Keep the speech encoder as it is."})
    compile_audio: bool = field(
        default=False, metadata={"help": "Compile the layers of the frozen speech encoder; made for GPUs."}
    )
    freeze_text: bool = field(default=True, metadata={"help": "Keep the language model as it is, but for LoRA."})
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA on the language model; 0 for none."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of LoRA, divided by its rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of LoRA's inputs."})
    lora_config: dict | str | None = field(
        default_factory=dict, metadata={"help": "Further fields of PEFT's `LoraConfig`, as JSON: {use_dora: true}."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Train LoRA on a language model in 4 bits, by bitsandbytes."}
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Train LoRA on a language model in 8 bits, by bitsandbytes."}
    )

    def __post_init__(self):
        if (self.model is None) == (self.audio_model is None or self.text_model is None):
            raise ValueError("Pass either `model`, or both `audio_model` and `text_model`.")
        if self.compile_audio and not self.freeze_audio:
            raise ValueError("`compile_audio` is for a frozen speech encoder; set `freeze_audio: true`.")
        if self.lora_rank < 0:
            raise ValueError(f"`lora_rank` must not be negative, got {self.lora_rank}.")
        self.projector, self.lora_config = (
            (json.loads(fields) if isinstance(fields, str) else fields) or {}
            for fields in (self.projector, self.lora_config)
        )
        for option in ("lora_config", "load_in_4bit", "load_in_8bit"):
            if vars(self)[option] and not self.lora_rank:
                raise ValueError(f"`{option}` is for LoRA; set `lora_rank`.")
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("Pass either `load_in_4bit` or `load_in_8bit`.")


@dataclass
class DataArguments:
    """Where recordings and transcripts come from; a dataset is a JSON Lines, CSV, TSV or Parquet file or a Hub id."""

    train_dataset: str | None = field(default=None, metadata={"help": "Dataset to train on."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Dataset to evaluate on while training."})
    # Lists in a recipe; the command line knows strings alone.
    train_datasets: str | None = field(
        default=None, metadata={"help": "Several datasets to mix, as a list in JSON; see `DatasetSpec`."}
    )
    eval_datasets: str | None = field(
        default=None, metadata={"help": "Several datasets to evaluate on, as a list in JSON."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Languages of train_datasets are drawn with p ∝ n^(1/temperature)."}
    )
    shuffle_buffer_size: int = field(default=1000, metadata={"help": "Rows of streams that are shuffled together."})
    min_duration: float | None = field(default=None, metadata={"help": "Of train_datasets, in seconds."})
    max_duration: float | None = field(default=None, metadata={"help": "Of train_datasets, in seconds."})
    min_characters_per_second: float | None = field(default=None, metadata={"help": "Of train_datasets."})
    max_characters_per_second: float | None = field(default=None, metadata={"help": "Of train_datasets."})
    dataset_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split of a Hub dataset to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split of a Hub dataset to evaluate on."})
    audio_column: str = field(default="audio", metadata={"help": "Column with recordings."})
    text_column: str = field(default="text", metadata={"help": "Column with transcripts."})
    language_column: str = field(default="language", metadata={"help": "Column with language codes or names."})
    language_dropout: float = field(
        default=0.5, metadata={"help": "Share of training prompts that leave the language out."}
    )
    feature_cache: str | None = field(
        default=None, metadata={"help": "Folder that keeps the output of a frozen speech encoder."}
    )
    feature_cache_gigabytes: float | None = field(
        default=None,
        metadata={"help": "Largest size of feature_cache; files that no dataset of this run needs make room."},
    )
    speed_perturbation: list[float] | None = field(
        default=None, metadata={"help": "Speeds to train at, such as 0.9 1.0 1.1; not with feature_cache."}
    )
    spec_augment: bool = field(
        default=False, metadata={"help": "Mask time and frequency of what is trained on; not with feature_cache."}
    )

    def __post_init__(self):
        if self.feature_cache is not None and (self.speed_perturbation or self.spec_augment):
            raise ValueError(
                "`speed_perturbation` and `spec_augment` alter recordings, and `feature_cache` encodes them once; pass one or "
                "the other."
            )
        self.train_datasets, self.eval_datasets = (
            json.loads(specs) if isinstance(specs, str) else specs
            for specs in (self.train_datasets, self.eval_datasets)
        )
        for role, dataset, specs in (
            ("train", self.train_dataset, self.train_datasets),
            ("eval", self.eval_dataset, self.eval_datasets),
        ):
            if dataset is not None and specs:
                raise ValueError(f"Pass either `{role}_dataset` or `{role}_datasets`.")
        columns = (self.audio_column, self.text_column, self.language_column)
        if (self.train_datasets or self.eval_datasets) and columns != ("audio", "text", "language"):
            raise ValueError(
                "`audio_column`, `text_column` and `language_column` are of `train_dataset` and `eval_dataset`; name those "
                "of `train_datasets` and `eval_datasets` in their entries."
            )


@dataclass
class LlmAsrTrainingArguments(Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the defaults and the further options that speech recognition needs."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator reads columns."})
    predict_with_generate: bool = field(default=True, metadata={"help": "Transcribe to evaluate."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Leave as it is."})
    include_num_input_tokens_seen: str | bool = field(default="no", metadata={"help": "Leave as it is."})
    audio_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the speech encoder, if not learning_rate."}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the language model or its LoRA, if not learning_rate."}
    )
    max_batch_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Batches of as many recordings of like length as have so many seconds with padding, on each process, in "
            "place of per_device_train_batch_size."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_batch_seconds is None:
            return
        if not 0 < self.max_batch_seconds < math.inf:
            raise ValueError(f"`max_batch_seconds` must be positive, got {self.max_batch_seconds}.")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"Pass either `max_batch_seconds` or `train_sampling_strategy`, got {self.train_sampling_strategy!r}."
            )
