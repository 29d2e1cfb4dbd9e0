"""Options of `llm-asr train`, for the command line and for recipes in YAML or JSON."""

import json
import math
from dataclasses import dataclass, field

from transformers import Seq2SeqTrainingArguments


@dataclass
class ModelArguments:
    """The checkpoint to start from or the parts to compose, and which of the parts to train."""

    model: str | None = field(
        default=None, metadata={"help": "LLM-ASR checkpoint to start from, instead of composing one."}
    )
    audio_model: str | None = field(default=None, metadata={"help": "Speech encoder: a folder or a Hub id."})
    text_model: str | None = field(default=None, metadata={"help": "Causal language model: a folder or a Hub id."})
    projector_type: str = field(
        default="moe_cif",
        metadata={
            "help": "One of conv, cif, stack, qformer and ctc, or moe, moe_cif, moe_stack, moe_qformer and moe_ctc with experts."
        },
    )
    # With `None` among the types, Transformers' parser passes the string of a flag on.
    projector: dict | str | None = field(
        default_factory=dict, metadata={"help": "Further fields of `LlmAsrProjectorConfig`, as JSON."}
    )
    encoder_padding: str = field(
        default="longest", metadata={"help": "Pad recordings to the longest of the batch (longest), or to max_length."}
    )
    encoder_attention: str | None = field(
        default=None,
        metadata={
            "help": "Attention of the speech encoder: full, or chunked for live transcription. By default that of the checkpoint, "
            "or full."
        },
    )
    encoder_chunk_s: float | None = field(default=None, metadata={"help": "Seconds of a chunk of attention."})
    encoder_left_context_s: float | None = field(
        default=None, metadata={"help": "Seconds before a chunk that its frames attend to."}
    )
    encoder_lookahead_s: float | None = field(
        default=None, metadata={"help": "Seconds after a chunk that its frames attend to."}
    )
    encoder_training_chunks_s: list[float] | None = field(
        default=None,
        metadata={
            "help": "Seconds of chunks of which each training batch draws one, such as 0.5 1.0 2.0. Full attention is one more of "
            "the draws."
        },
    )
    freeze_audio: bool = field(default=True, metadata={"help": "Do not train the speech encoder."})
    compile_audio: bool = field(
        default=False, metadata={"help": "Compile the layers of the frozen speech encoder, for use on GPUs."}
    )
    freeze_text: bool = field(default=True, metadata={"help": "Do not train the language model's own weights."})
    train_in_saved_dtype: bool = field(
        default=False, metadata={"help": "Train weights in the dtype in which they were saved, instead of float32."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA on the language model; 0 for none."})
    lora_alpha: int = field(
        default=32, metadata={"help": "Scale of LoRA; its updates are multiplied by lora_alpha / lora_rank."}
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the inputs of LoRA."})
    lora_config: dict | str | None = field(
        default_factory=dict, metadata={"help": "Further fields of PEFT's `LoraConfig`, as JSON: {use_dora: true}."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Train LoRA on a language model that bitsandbytes quantizes to 4 bits."}
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Train LoRA on a language model that bitsandbytes quantizes to 8 bits."}
    )

    def __post_init__(self):
        if (self.model is None) == (self.audio_model is None or self.text_model is None):
            raise ValueError("Pass either `model`, or both `audio_model` and `text_model`.")
        if self.encoder_attention is None and any(
            value is not None for name, value in self.attention_options().items() if name != "encoder_attention"
        ):
            raise ValueError(
                "`encoder_chunk_s`, `encoder_left_context_s`, `encoder_lookahead_s` and `encoder_training_chunks_s` are options of "
                "`encoder_attention: chunked`; set that too."
            )
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

    def attention_options(self) -> dict:
        """Arguments of [`LlmAsrConfig.set_encoder_attention`]."""
        return {
            "encoder_attention": self.encoder_attention,
            "encoder_chunk_s": self.encoder_chunk_s,
            "encoder_left_context_s": self.encoder_left_context_s,
            "encoder_lookahead_s": self.encoder_lookahead_s,
            "encoder_training_chunks_s": self.encoder_training_chunks_s,
        }


@dataclass
class DataArguments:
    """Datasets of recordings and transcripts. A dataset is a JSON Lines, CSV, TSV or Parquet file, or a Hub id."""

    train_dataset: str | None = field(default=None, metadata={"help": "Dataset to train on."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Dataset to evaluate on while training."})
    # A recipe has lists here. The command line can only pass strings.
    train_datasets: str | None = field(
        default=None, metadata={"help": "Several datasets to mix, as a list in JSON; see `DatasetSpec`."}
    )
    eval_datasets: str | None = field(
        default=None, metadata={"help": "Several datasets to evaluate on, as a list in JSON."}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Languages of train_datasets are drawn with p ∝ n^(1/temperature)."}
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Number of rows of a stream to shuffle together."}
    )
    min_duration: float | None = field(
        default=None, metadata={"help": "Leave shorter recordings out of train_datasets, in seconds."}
    )
    max_duration: float | None = field(
        default=None, metadata={"help": "Leave longer recordings out of train_datasets, in seconds."}
    )
    min_characters_per_second: float | None = field(
        default=None, metadata={"help": "Leave recordings with a lower speaking rate out of train_datasets."}
    )
    max_characters_per_second: float | None = field(
        default=None, metadata={"help": "Leave recordings with a higher speaking rate out of train_datasets."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split of a Hub dataset to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split of a Hub dataset to evaluate on."})
    audio_column: str = field(default="audio", metadata={"help": "Column with recordings."})
    text_column: str = field(default="text", metadata={"help": "Column with transcripts."})
    language_column: str = field(default="language", metadata={"help": "Column with language codes or names."})
    language_dropout: float = field(
        default=0.5, metadata={"help": "Share of training prompts that do not name the language."}
    )
    translation_share: float = field(
        default=0.0,
        metadata={"help": "Share of the rows with a translation that are translated instead of transcribed."},
    )
    max_keywords: int = field(
        default=0,
        metadata={
            "help": "Largest number of keywords in a training prompt, for models that take keywords; 0 for none."
        },
    )
    feature_cache: str | None = field(
        default=None, metadata={"help": "Folder for saving the outputs of a frozen speech encoder."}
    )
    feature_cache_gigabytes: float | None = field(
        default=None,
        metadata={
            "help": "Largest size of feature_cache; files that this run does not need are deleted to make room."
        },
    )
    speed_perturbation: list[float] | None = field(
        default=None, metadata={"help": "Speeds of training recordings, such as 0.9 1.0 1.1; not with feature_cache."}
    )
    spec_augment: bool = field(
        default=False,
        metadata={
            "help": "Mask spans of time and frequency in training recordings or, with feature_cache, spans of time and of "
            "channels in the outputs of the speech encoder."
        },
    )

    def __post_init__(self):
        if self.max_keywords < 0:
            raise ValueError(f"`max_keywords` must not be negative, got {self.max_keywords}.")
        if self.feature_cache is not None and self.speed_perturbation:
            raise ValueError(
                "`speed_perturbation` changes recordings in every epoch, but `feature_cache` encodes them only once; use one or "
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
                "`audio_column`, `text_column` and `language_column` apply to `train_dataset` and `eval_dataset`; name the "
                "columns of `train_datasets` and `eval_datasets` in their entries."
            )


@dataclass
class LlmAsrTrainingArguments(Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with defaults and further options for speech recognition."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Do not change: the collator needs all columns."}
    )
    predict_with_generate: bool = field(default=True, metadata={"help": "Transcribe recordings in evaluations."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Do not change."})
    include_num_input_tokens_seen: str | bool = field(default="no", metadata={"help": "Do not change."})
    draft_only: bool = field(
        default=False,
        metadata={
            "help": "Train the projector and the draft head without the layers of the language model, as a first stage. "
            "Evaluations measure the drafts."
        },
    )
    audio_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the speech encoder; defaults to learning_rate."}
    )
    text_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the language model or its LoRA; defaults to learning_rate."}
    )
    max_batch_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Largest seconds of audio in a batch of one process, with padding, instead of "
            "per_device_train_batch_size. Batches hold recordings of similar length."
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
