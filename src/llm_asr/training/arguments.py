"""What `examples/train.py` can be told, on the command line or in a YAML or JSON file."""

import json
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
    projector: dict | str = field(
        default_factory=dict, metadata={"help": "Further fields of `LlmAsrProjectorConfig`, as JSON."}
    )
    encoder_padding: str = field(
        default="longest", metadata={"help": "Run the speech encoder at the batch's length, or at max_length."}
    )
    freeze_audio: bool = field(default=True, metadata={"help": "Keep the speech encoder as it is."})
    freeze_text: bool = field(default=True, metadata={"help": "Keep the language model as it is, but for LoRA."})
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA on the language model; 0 for none."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of LoRA, divided by its rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of LoRA's inputs."})

    def __post_init__(self):
        if (self.model is None) == (self.audio_model is None or self.text_model is None):
            raise ValueError("Pass either `model`, or both `audio_model` and `text_model`.")
        if self.lora_rank < 0:
            raise ValueError(f"`lora_rank` must not be negative, got {self.lora_rank}.")


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

    def __post_init__(self):
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
    """`Seq2SeqTrainingArguments` with the defaults that speech recognition needs."""

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
