"""Configuration of the speech encoder → projector → causal language model family."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .backbone_references import check_backbones
from .chunked_attention import AttentionChunks
from .configuration_checks import require
from .configuration_projector import LlmAsrProjectorConfig
from .speech_encoders import describe_speech_encoder, find_speech_encoder
from .speech_llm_families import SpeechLlmFamily, find_speech_llm
from .transformers_versions import SubConfigSpec
from .ultravox_config import read_ultravox_config


# Names of the parts of the loss, in the model's output and in training logs.
LOSS_PARTS = ("lm_loss", "quantity_loss", "draft_loss", "ctc_loss", "router_aux_loss", "router_z_loss")
ENCODER_PADDINGS = ("longest", "max_length", "features")
ENCODER_ATTENTIONS = ("full", "chunked")
# Seconds of `encoder_chunk_s`, `encoder_left_context_s` and `encoder_lookahead_s`.
DEFAULT_CHUNKS_S = (1.0, 10.0, 0.0)


# Names of the number of layers in the configurations of parts. Layers are built one by one, so a number without a bound would
# keep the program busy before it reads any weight.
LAYER_COUNTS = (
    "num_hidden_layers",
    "encoder_layers",
    "decoder_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "speech_encoder_layers",
    "encoder_num_hidden_layers",
)
MAX_LAYERS = 2000

# From one frame in ten seconds to one frame per sample.
MIN_FRAME_RATE, MAX_FRAME_RATE = 0.1, 48_000.0


@strict
class LlmAsrConfig(PreTrainedConfig):
    r"""
    Configuration of [`LlmAsrForConditionalGeneration`]: a speech encoder, a projector and a causal language model.

    Args:
        audio_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the speech encoder, of one of the families in `SPEECH_ENCODERS` of `speech_encoders.py`. Defaults
            to Whisper-base's sizes.
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of any causal language model. Defaults to a `qwen2` configuration.
        projector_config ([`LlmAsrProjectorConfig`] or `dict`, *optional*):
            Configuration of the projector.
        audio_token_id (`int`, *optional*, defaults to 151665):
            Token that stands for one recording in `input_ids`.
        audio_frame_rate (`float`, *optional*, defaults to 50.0):
            Output frames per second of the speech encoder.
        encoder_padding (`str`, *optional*, defaults to `"longest"`):
            `"longest"` runs the speech encoder at the length of the longest recording of a batch, and masks what is
            padding. `"max_length"` runs Whisper, and encoders made from it, over a window of 30 s of which the rest is
            silence, as Whisper was trained. `"features"` encodes the features after the end of a recording as they are given, as
            Qwen2-Audio, Audio Flamingo 3 and GLM-ASR do: convolutions read them, attention leaves them out if the encoder has a
            mask, and they have no embeddings. The processor must have `audio_padding="max_length"`. The projector must see in use
            what it saw in training, so this is a part of the checkpoint.
        encoder_attention (`str`, *optional*, defaults to `"full"`):
            `"full"`: every frame of the speech encoder attends to the whole recording. `"chunked"`: it attends to its own chunk,
            to a left context and to a look-ahead, the same in all layers, so that streams can be encoded while they arrive
            (dynamic chunk training, arXiv 2012.05481, section 3.2; right context as in Emformer, arXiv 2010.10759). Whisper and
            Voxtral support it, with `encoder_padding="longest"`. The encoder must be trained with it.
        encoder_chunk_s (`float`, *optional*):
            Seconds of a chunk. Like the two below, a multiple of the frame of the encoder, and an option of `"chunked"`.
            Defaults to 1.
        encoder_left_context_s (`float`, *optional*):
            Seconds before a chunk that its frames attend to. Defaults to 10.
        encoder_lookahead_s (`float`, *optional*):
            Seconds after a chunk that its frames attend to. Defaults to 0. They are encoded twice.
        encoder_training_chunks_s (`list[float]`, *optional*):
            Seconds of chunks of which training draws one for each batch, in place of `encoder_chunk_s`. Full attention is one more
            of the draws. A checkpoint trained so serves several values of `encoder_chunk_s`.
        pad_token_id (`int`, *optional*):
            Padding token of the language model.
        backbones (`dict`, *optional*):
            Set in slim checkpoints, whose weights are those that were trained alone: where the speech encoder
            (`"audio_tower"`) and the language model (`"language_model"`) come from. Each has a `name_or_path`, the
            `revision` it is pinned to (a commit of the Hub; `None` for a local folder), the `dtype` that its weights had in
            the model, and the `sha256` of each of its files.
        converted_from (`dict`, *optional*):
            Set in converted checkpoints: the `name_or_path`, the `revision` (a commit of the Hub, or `None`), the `model_type` and the
            `license` of the published speech language model.
        part_dtypes (`dict[str, torch.dtype]`, *optional*):
            Dtypes by sub-configuration, which a model that is built from this configuration writes into them. `from_pretrained`
            sets it, because Transformers writes one dtype into all sub-configurations. It is not saved: the weights tell.

    Example:

    ```python
    >>> from llm_asr import LlmAsrConfig, LlmAsrForConditionalGeneration

    >>> config = LlmAsrConfig(projector_config={"projector_type": "moe_cif", "num_experts": 4})
    >>> model = LlmAsrForConditionalGeneration(config)
    ```
    """

    model_type = "llm_asr"
    keys_to_ignore_at_inference = [
        "past_key_values",
        "cache",
        *LOSS_PARTS,
        "router_logits",
        "selected_experts",
        "audio_embeds",
        "audio_lengths",
        "alphas",
        "quantities",
        "fire_times",
        "ctc_labels",
        "ctc_skipped",
    ]
    if SubConfigSpec is None:
        sub_configs = {
            "audio_config": AutoConfig,
            "text_config": AutoConfig,
            "projector_config": LlmAsrProjectorConfig,
        }
    else:
        sub_configs_defaults = {
            "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
            "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
            "projector_config": SubConfigSpec(config_class=LlmAsrProjectorConfig),
        }

    if TYPE_CHECKING:
        # Sub-configurations may be passed as dicts. In the finished configuration they are configurations.
        audio_config: PreTrainedConfig
        text_config: PreTrainedConfig
        projector_config: LlmAsrProjectorConfig

        def __init__(self, **kwargs: Any) -> None: ...

    else:
        audio_config: dict | PreTrainedConfig | None = None
        text_config: dict | PreTrainedConfig | None = None
        projector_config: dict | PreTrainedConfig | None = None
    audio_token_id: int = 151665
    audio_frame_rate: float | int = 50.0
    encoder_padding: str = "longest"
    encoder_attention: str = "full"
    encoder_chunk_s: float | int | None = None
    encoder_left_context_s: float | int | None = None
    encoder_lookahead_s: float | int | None = None
    encoder_training_chunks_s: list[float | int] | tuple[float | int, ...] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool | None = None
    backbones: dict | None = None
    converted_from: dict | None = None
    part_dtypes: dict | None = None

    def __post_init__(self, **kwargs):
        # A published checkpoint names a pipeline for users who do not have this package. Users who have it also have the
        # pipeline, but with the name in place `pipeline()` would ask them to trust the checkpoint's code.
        if not __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
            kwargs.pop("custom_pipelines", None)
        require(self.audio_token_id >= 0, f"`audio_token_id` must not be negative, got {self.audio_token_id}.")
        require(
            MIN_FRAME_RATE <= self.audio_frame_rate <= MAX_FRAME_RATE,
            f"`audio_frame_rate` must be from {MIN_FRAME_RATE} to {MAX_FRAME_RATE:g} frames per second, got "
            f"{self.audio_frame_rate}.",
        )
        require(
            self.encoder_padding in ENCODER_PADDINGS,
            f"`encoder_padding` must be one of {list(ENCODER_PADDINGS)}, got {self.encoder_padding!r}.",
        )
        for part in ("audio_config", "text_config"):
            given = getattr(self, part)
            for name in LAYER_COUNTS if isinstance(given, dict) else ():
                count = given.get(name)
                require(
                    not isinstance(count, int) or count <= MAX_LAYERS,
                    f"`{name}` of `{part}` must be at most {MAX_LAYERS}, got {count}.",
                )
        if SubConfigSpec is None:
            self._build_sub_configs()
        super().__post_init__(**kwargs)
        require(
            self.encoder_padding == "longest"
            or self.encoder_padding in find_speech_encoder(self.audio_config).paddings,
            f"`encoder_padding={self.encoder_padding!r}` is for encoders whose windows have a fixed length, such as Whisper's, "
            f"and `audio_config` has model_type {self.audio_config.model_type!r}; use 'longest'.",
        )
        self._check_attention()
        if self.backbones is not None:
            check_backbones(self.backbones)
        # The head belongs to the language model, whose configuration says if it is tied. Transformers reads this copy.
        self.tie_word_embeddings = self.text_config.tie_word_embeddings

    def set_encoder_attention(
        self,
        encoder_attention: str,
        encoder_chunk_s: float | None = None,
        encoder_left_context_s: float | None = None,
        encoder_lookahead_s: float | None = None,
        encoder_training_chunks_s: list[float] | None = None,
    ) -> None:
        """
        Change the attention of the speech encoder: to train a checkpoint in chunks, or to use one that was trained with
        `encoder_training_chunks_s` at another latency.

        Args:
            encoder_attention, encoder_chunk_s, encoder_left_context_s, encoder_lookahead_s, encoder_training_chunks_s:
                See [`LlmAsrConfig`].

        Raises:
            `ValueError`: If a value is not valid.
        """
        self.encoder_attention = encoder_attention
        self.encoder_chunk_s = encoder_chunk_s
        self.encoder_left_context_s = encoder_left_context_s
        self.encoder_lookahead_s = encoder_lookahead_s
        self.encoder_training_chunks_s = encoder_training_chunks_s
        self._check_attention()

    def _check_attention(self) -> None:
        require(
            self.encoder_attention in ENCODER_ATTENTIONS,
            f"`encoder_attention` must be one of {list(ENCODER_ATTENTIONS)}, got {self.encoder_attention!r}.",
        )
        names = ("encoder_chunk_s", "encoder_left_context_s", "encoder_lookahead_s")
        if self.encoder_attention == "full":
            for name in (*names, "encoder_training_chunks_s"):
                require(
                    getattr(self, name) is None,
                    f"`{name}` is an option of `encoder_attention='chunked'`; set that too.",
                )
            return
        require(
            self.encoder_attention in find_speech_encoder(self.audio_config).attentions,
            "`encoder_attention='chunked'` is for Whisper's and Voxtral's encoders, and `audio_config` has model_type "
            f"{self.audio_config.model_type!r}; use 'full'.",
        )
        require(
            self.encoder_padding == "longest",
            f"`encoder_padding={self.encoder_padding!r}` encodes what follows the end of a recording, which a stream does not know; "
            "use 'longest' with `encoder_attention='chunked'`.",
        )
        for name, default in zip(names, DEFAULT_CHUNKS_S, strict=True):
            if getattr(self, name) is None:
                setattr(self, name, default)
        if self.encoder_training_chunks_s is not None:
            require(
                len(self.encoder_training_chunks_s) > 0, "`encoder_training_chunks_s` must have at least one entry."
            )
            for seconds in self.encoder_training_chunks_s:
                self._count_frames("encoder_training_chunks_s", seconds, 1)
        require(self.attention_chunks is not None, "`encoder_attention` has no chunks.")

    def _count_frames(self, name: str, seconds: float | None, fewest: int) -> int:
        num_frames = (seconds or 0) * self.audio_frame_rate
        require(
            math.isfinite(num_frames) and round(num_frames) >= fewest and abs(num_frames - round(num_frames)) < 1e-6,
            f"`{name}` must be a multiple of {1 / self.audio_frame_rate:g} s, the frame of the speech encoder, and at least "
            f"{fewest / self.audio_frame_rate:g}, got {seconds}.",
        )
        return round(num_frames)

    def _build_sub_configs(self) -> None:
        """Build the parts that are dictionaries or absent, as newer versions of Transformers do by themselves."""
        for part, model_type in (("audio_config", "whisper"), ("text_config", "qwen2")):
            given = getattr(self, part) or {}
            if isinstance(given, dict):
                setattr(self, part, AutoConfig.for_model(**{"model_type": model_type, **given}))
        if not isinstance(self.projector_config, PreTrainedConfig):
            self.projector_config = LlmAsrProjectorConfig(**(self.projector_config or {}))

    def to_dict(self) -> dict:
        output = super().to_dict()
        # Saving a model does not save the code of a pipeline, so the saved configuration must not name a pipeline.
        output.pop("custom_pipelines", None)
        output.pop("part_dtypes", None)
        return output

    @staticmethod
    def describe_speech_encoder(audio_config: PreTrainedConfig, feature_extractor) -> dict:
        """
        What a processor has to know of a speech encoder; see [`describe_speech_encoder`]. Processors reach it here, through
        Transformers' registry: `processing` and `modeling` do not import each other.
        """
        return describe_speech_encoder(audio_config, feature_extractor)

    @staticmethod
    def find_speech_llm(source: str, **hub_kwargs) -> SpeechLlmFamily:
        """How a published speech language model is written in this package; see [`find_speech_llm`]."""
        return find_speech_llm(source, **hub_kwargs)

    @staticmethod
    def read_ultravox_config(source: str, **hub_kwargs) -> SimpleNamespace:
        """The configuration of an Ultravox checkpoint; see [`read_ultravox_config`]."""
        return read_ultravox_config(source, **hub_kwargs)

    @property
    def attention_chunks(self) -> AttentionChunks | None:
        """
        Chunks of the speech encoder's attention, in its frames; `None` with full attention.

        Raises:
            `ValueError`: If `encoder_chunk_s`, `encoder_left_context_s` or `encoder_lookahead_s` is no multiple of a frame.
        """
        if self.encoder_attention == "full":
            return None
        return AttentionChunks(
            self._count_frames("encoder_chunk_s", self.encoder_chunk_s, 1),
            self._count_frames("encoder_left_context_s", self.encoder_left_context_s, 0),
            self._count_frames("encoder_lookahead_s", self.encoder_lookahead_s, 0),
        )

    def draw_attention_chunks(self) -> AttentionChunks | None:
        """Chunks for a batch of training: drawn with PyTorch's generator if `encoder_training_chunks_s` is set."""
        chunks = self.attention_chunks
        if chunks is None or self.encoder_training_chunks_s is None:
            return chunks
        draw = int(torch.randint(len(self.encoder_training_chunks_s) + 1, []))
        if draw == len(self.encoder_training_chunks_s):
            return None
        size = self._count_frames("encoder_training_chunks_s", self.encoder_training_chunks_s[draw], 1)
        return replace(chunks, size=size)

    @property
    def projector_lookahead_s(self) -> float:
        """Seconds after the start of an encoder frame that the reduction of frames waits for."""
        projector_config = self.projector_config
        if projector_config.block_size is not None:
            return (projector_config.block_size - 1) / self.audio_frame_rate
        reach, frames, scale = projector_config.conv_kernel_size // 2, 0, 1
        for stride in projector_config.conv_strides or ():
            frames, scale = frames + reach * scale, scale * stride
        return (frames + (reach * scale if projector_config.uses_cif else 0)) / self.audio_frame_rate

    @property
    def projector_frame_period(self) -> float:
        """
        Seconds from one frame after the projector's convolutions to the next, of which CIF weighs each. Without convolutions,
        seconds from one embedding to the next.
        """
        return self.projector_config.downsampling / self.audio_frame_rate


__all__ = ["LOSS_PARTS", "LlmAsrConfig"]
