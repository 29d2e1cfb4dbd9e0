"""Configuration of the speech encoder → projector → causal language model family."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .backbone_references import check_backbones
from .chunked_attention import AttentionChunks
from .speech_encoders import describe_speech_encoder, find_speech_encoder
from .transformers_versions import SubConfigSpec


# Keywords that `PreTrainedConfig` accepts or writes, besides its fields.
INHERITED_OPTIONS = (
    "attn_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
)

PROJECTOR_TYPES = ("conv", "moe", "cif", "moe_cif")
ROUTER_TYPES = ("linear", "mlp")
ROUTING_LEVELS = ("frame", "utterance")
MERGES = ("output", "parameters")
# Names of the parts of the loss, in the model's output and in training logs.
LOSS_PARTS = ("lm_loss", "quantity_loss", "draft_loss", "router_aux_loss", "router_z_loss")
ENCODER_PADDINGS = ("longest", "max_length")
ENCODER_ATTENTIONS = ("full", "chunked")
# Seconds of `encoder_chunk_s`, `encoder_left_context_s` and `encoder_lookahead_s`.
DEFAULT_CHUNKS_S = (1.0, 10.0, 0.0)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# Several times the number that the fastest speech needs at the lowest frame rates.
MAX_FIRES_PER_FRAME = 16

# Wider than any use needs. Outside this range, CIF fires never or everywhere.
CIF_RANGE = (0.01, 100.0)
MAX_CONVOLUTIONS, MAX_DOWNSAMPLING = 16, 64

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
class LlmAsrProjectorConfig(PreTrainedConfig):
    r"""
    Configuration of the projector that turns speech-encoder frames into embeddings of the language model.

    Every field is checked at construction; an impossible value raises a `ValueError` that names the field.

    Args:
        projector_type (`str`, *optional*, defaults to `"moe_cif"`):
            One of `"conv"` (strided convolutions and two linear layers, fixed rate), `"moe"` (strided convolutions and a
            mixture of experts, fixed rate), `"cif"` (Continuous Integrate-and-Fire and two linear layers, dynamic rate)
            and `"moe_cif"` (Continuous Integrate-and-Fire and a mixture of experts, dynamic rate).
        hidden_size (`int`, *optional*, defaults to 1024):
            Width of the convolutions.
        intermediate_size (`int`, *optional*, defaults to 2048):
            Width of the hidden layer between the two linear layers of `"conv"` and `"cif"`.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the convolutions, the linear layers and the experts.
        conv_kernel_size (`int`, *optional*, defaults to 3):
            Kernel of each convolution, in frames; odd, so that frame `t` of the output is centred on frame
            `t * stride` of the input.
        conv_strides (`list[int]`, *optional*):
            Stride of each convolution. Defaults to `[2, 2]` for the fixed-rate types (four frames to one embedding, as
            in the paper) and `[2]` for the CIF types, where CIF does the rest.
        num_experts (`int`, *optional*, defaults to 8):
            Number of routed experts.
        num_experts_per_tok (`int`, *optional*, defaults to 2):
            Experts that each frame is sent to. `num_experts_per_tok == num_experts` is the dense mixture of MOSA
            (arXiv 2508.18998).
        expert_hidden_size (`int`, *optional*, defaults to 1024):
            Width of the hidden layer of one expert.
        expert_bias (`bool`, *optional*, defaults to `False`):
            Whether the two layers of a routed expert have biases, as the two linear layers of `"conv"` and `"cif"` have.
        num_shared_experts (`int`, *optional*, defaults to 0):
            Experts that every frame passes through besides the routed ones (DeepSeekMoE, arXiv 2401.06066).
        router_type (`str`, *optional*, defaults to `"linear"`):
            `"linear"`, or `"mlp"` for a router with a hidden layer (MOSA, arXiv 2508.18998).
        router_hidden_size (`int`, *optional*, defaults to 256):
            Width of that layer.
        routing_level (`str`, *optional*, defaults to `"frame"`):
            `"frame"`, or `"utterance"` to choose experts once a recording, by the mean of its frames.
        merge (`str`, *optional*, defaults to `"output"`):
            What is averaged by the routing weights: the `"output"` of the chosen experts, or their `"parameters"`, which
            makes one expert for each recording (SMEAR, arXiv 2306.03745, section 3; SMEAR-MoE, arXiv 2601.19451, which
            averages all: `num_experts_per_tok == num_experts`). Parameters are averaged once a recording, so
            `"parameters"` needs `routing_level="utterance"`.
        norm_topk_prob (`bool`, *optional*, defaults to `True`):
            Whether the routing weights of the chosen experts are rescaled to sum to one (Mixtral, arXiv 2401.04088, eq.
            2-4). With one expert a frame, rescaling leaves the router nothing to learn from but its balance.
        router_jitter_noise (`float`, *optional*, defaults to 0.0):
            In training, what the router sees is multiplied by uniform noise in `1 ± router_jitter_noise` (Switch
            Transformers, arXiv 2101.03961, section 2.4).
        router_aux_loss_coef (`float`, *optional*, defaults to 0.01):
            Weight of the load-balancing loss (Switch Transformers, arXiv 2101.03961, eq. 4-6), over all processes and
            micro-batches of an optimizer step (arXiv 2501.11873).
        router_bias_update_rate (`float`, *optional*, defaults to 0.0):
            Step of loss-free balancing, which moves a bias of the router after each optimizer step (arXiv 2408.15664,
            algorithm 1; DeepSeek-V3, arXiv 2412.19437, eq. 16, with 0.001). It is meant in place of the load-balancing
            loss: set `router_aux_loss_coef` to zero.
        router_z_loss_coef (`float`, *optional*, defaults to 0.001):
            Weight of the router z-loss (ST-MoE, arXiv 2202.08906, eq. 5).
        cif_threshold (`float`, *optional*, defaults to 1.0):
            Accumulated weight at which an embedding fires (β in CIF, arXiv 1905.11235).
        cif_tail_threshold (`float`, *optional*, defaults to 0.5):
            Fraction of `cif_threshold` above which the weight left at the end fires one last embedding at inference.
        cif_smooth_factor (`float`, *optional*, defaults to 1.0):
            Factor of the sigmoid that gives a frame's weight; above one, a frame can fire more than once (Paraformer,
            arXiv 2206.08317, as released in FunASR).
        cif_noise_threshold (`float`, *optional*, defaults to 0.0):
            Weight below which a frame weighs nothing: `alpha = relu(smooth_factor * sigmoid(x) - noise_threshold)` (same
            source). Above zero it silences frames between tokens, and such frames no longer learn.
        quantity_loss_coef (`float`, *optional*, defaults to 1.0):
            Weight of the CIF quantity loss (arXiv 1905.11235, section 3.2).
        draft_head (`bool`, *optional*, defaults to `False`):
            Whether a head reads drafts of transcripts off CIF's embeddings, which `generate(use_draft=True)` has the
            language model verify (self-speculative decoding, arXiv 2603.11243).
        draft_residual (`bool`, *optional*, defaults to `False`):
            Whether the draft head's output is added to CIF's embeddings. The draft loss then moves each embedding towards the
            language model's own embedding of its token, if input and output embeddings are tied, so that a first stage with
            `draft_only` makes embeddings that the language model can read.
        draft_loss_coef (`float`, *optional*, defaults to 0.3):
            Weight of the cross-entropy of the drafts.
        expected_tokens_per_second (`float`, *optional*, defaults to 4.0):
            Firing rate of the untrained CIF weights: the bias of the weight predictor is initialised to it.
        initializer_range (`float`, *optional*):
            Standard deviation of the normal initialisation of all weight matrices. By default `1 / sqrt(fan_in)` for each
            (LeCun et al., 1998, "Efficient BackProp", section 4.6), by which how loud embeddings begin depends on no width, and
            0.02 for what routes and weighs frames.
    """

    model_type = "llm_asr_projector"

    projector_type: str = "moe_cif"
    hidden_size: int = 1024
    intermediate_size: int = 2048
    hidden_act: str = "gelu"
    conv_kernel_size: int = 3
    conv_strides: list[int] | tuple[int, ...] | None = None
    num_experts: int = 8
    num_experts_per_tok: int = 2
    expert_hidden_size: int = 1024
    expert_bias: bool = False
    num_shared_experts: int = 0
    router_type: str = "linear"
    router_hidden_size: int = 256
    routing_level: str = "frame"
    merge: str = "output"
    norm_topk_prob: bool = True
    router_jitter_noise: float | int = 0.0
    router_aux_loss_coef: float | int = 0.01
    router_bias_update_rate: float | int = 0.0
    router_z_loss_coef: float | int = 0.001
    cif_threshold: float | int = 1.0
    cif_tail_threshold: float | int = 0.5
    cif_smooth_factor: float | int = 1.0
    cif_noise_threshold: float | int = 0.0
    quantity_loss_coef: float | int = 1.0
    draft_head: bool = False
    draft_residual: bool = False
    draft_loss_coef: float | int = 0.3
    expected_tokens_per_second: float | int = 4.0
    initializer_range: float | int | None = None

    def __post_init__(self, **kwargs):
        # `PreTrainedConfig` keeps unknown keys as attributes, which would turn a misspelt option into a silent default.
        unknown = sorted(name for name in kwargs if name not in INHERITED_OPTIONS and not name.startswith("_"))
        _require(not unknown, f"`projector_config` has no option named {unknown}; correct or remove it.")
        for name, choices in (
            ("projector_type", PROJECTOR_TYPES),
            ("router_type", ROUTER_TYPES),
            ("routing_level", ROUTING_LEVELS),
            ("merge", MERGES),
        ):
            value = getattr(self, name)
            _require(value in choices, f"`{name}` must be one of {list(choices)}, got {value!r}.")
        if self.conv_strides is None:
            self.conv_strides = [2] if self.uses_cif else [2, 2]
        self.conv_strides = list(self.conv_strides)
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_experts",
            "num_experts_per_tok",
            "expert_hidden_size",
            "router_hidden_size",
            "conv_kernel_size",
        ):
            _require(getattr(self, name) >= 1, f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in (
            "num_shared_experts",
            "router_aux_loss_coef",
            "router_bias_update_rate",
            "router_z_loss_coef",
            "quantity_loss_coef",
            "draft_loss_coef",
            "cif_noise_threshold",
            "initializer_range",
        ):
            value = getattr(self, name)
            _require(
                value is None or (math.isfinite(value) and value >= 0),
                f"`{name}` must not be negative or infinite, got {value}.",
            )
        for name in ("cif_threshold", "cif_smooth_factor", "expected_tokens_per_second"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, f"`{name}` must be positive and finite, got {value}.")
        _require(
            self.hidden_act in ACT2FN,
            f"`hidden_act` must be one of Transformers' activations, such as 'gelu', got {self.hidden_act!r}.",
        )
        _require(
            0 < self.cif_tail_threshold <= 1,
            f"`cif_tail_threshold` is a fraction of `cif_threshold` in (0, 1], got {self.cif_tail_threshold}.",
        )
        _require(
            self.cif_smooth_factor <= MAX_FIRES_PER_FRAME * self.cif_threshold,
            f"`cif_smooth_factor` ({self.cif_smooth_factor}) must be at most {MAX_FIRES_PER_FRAME} times `cif_threshold` "
            f"({self.cif_threshold}): a frame fires as many embeddings.",
        )
        for name in ("cif_threshold", "cif_smooth_factor"):
            low, high = CIF_RANGE
            value = getattr(self, name)
            _require(low <= value <= high, f"`{name}` must be from {low:g} to {high:g}, got {value}.")
        _require(
            self.cif_noise_threshold < self.cif_smooth_factor,
            f"`cif_noise_threshold` ({self.cif_noise_threshold}) must be below `cif_smooth_factor` "
            f"({self.cif_smooth_factor}), or no frame weighs anything.",
        )
        _require(
            self.conv_kernel_size % 2 == 1,
            f"`conv_kernel_size` must be odd so that frames stay centred, got {self.conv_kernel_size}.",
        )
        _require(
            len(self.conv_strides) >= 1 and all(stride >= 1 for stride in self.conv_strides),
            f"`conv_strides` must hold at least one stride, each at least 1, got {self.conv_strides}.",
        )
        _require(
            len(self.conv_strides) <= MAX_CONVOLUTIONS and self.downsampling <= MAX_DOWNSAMPLING,
            f"`conv_strides` must be at most {MAX_CONVOLUTIONS} and make one frame of at most {MAX_DOWNSAMPLING}, got "
            f"{len(self.conv_strides)} that make one of {self.downsampling}.",
        )
        _require(
            self.num_experts_per_tok <= self.num_experts,
            f"`num_experts_per_tok` ({self.num_experts_per_tok}) must not exceed `num_experts` ({self.num_experts}).",
        )
        _require(
            0 <= self.router_jitter_noise < 1,
            f"`router_jitter_noise` must be in [0, 1), got {self.router_jitter_noise}.",
        )
        _require(
            self.merge == "output" or self.routing_level == "utterance",
            "`merge='parameters'` makes one expert for each recording; set `routing_level='utterance'`.",
        )
        _require(
            not self.router_bias_update_rate or self.num_experts_per_tok < self.num_experts,
            "`router_bias_update_rate` balances a choice, and `num_experts_per_tok == num_experts` leaves none; set it to "
            "zero.",
        )
        _require(
            not self.draft_head or self.uses_cif,
            f"`draft_head` reads one token off each of CIF's embeddings, and `projector_type` is {self.projector_type!r}; use "
            "'cif' or 'moe_cif'.",
        )
        _require(
            self.draft_head or not self.draft_residual,
            "`draft_residual` is an option of the draft head; set `draft_head=True`.",
        )
        super().__post_init__(**kwargs)

    @property
    def uses_cif(self) -> bool:
        """Whether Continuous Integrate-and-Fire determines the number of embeddings of a recording."""
        return self.projector_type in ("cif", "moe_cif")

    @property
    def uses_experts(self) -> bool:
        """Whether frames are routed to experts."""
        return self.projector_type in ("moe", "moe_cif")

    @property
    def downsampling(self) -> int:
        """Encoder frames per frame after the convolutions."""
        return math.prod(self.conv_strides or ())


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
            silence, as Whisper was trained. The projector must see in use what it saw in training, so this is a part of the checkpoint.
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
    part_dtypes: dict | None = None

    def __post_init__(self, **kwargs):
        # A published checkpoint names a pipeline for users who do not have this package. Users who have it also have the
        # pipeline, but with the name in place `pipeline()` would ask them to trust the checkpoint's code.
        if not __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
            kwargs.pop("custom_pipelines", None)
        _require(self.audio_token_id >= 0, f"`audio_token_id` must not be negative, got {self.audio_token_id}.")
        _require(
            MIN_FRAME_RATE <= self.audio_frame_rate <= MAX_FRAME_RATE,
            f"`audio_frame_rate` must be from {MIN_FRAME_RATE} to {MAX_FRAME_RATE:g} frames per second, got "
            f"{self.audio_frame_rate}.",
        )
        _require(
            self.encoder_padding in ENCODER_PADDINGS,
            f"`encoder_padding` must be one of {list(ENCODER_PADDINGS)}, got {self.encoder_padding!r}.",
        )
        for part in ("audio_config", "text_config"):
            given = getattr(self, part)
            for name in LAYER_COUNTS if isinstance(given, dict) else ():
                count = given.get(name)
                _require(
                    not isinstance(count, int) or count <= MAX_LAYERS,
                    f"`{name}` of `{part}` must be at most {MAX_LAYERS}, got {count}.",
                )
        if SubConfigSpec is None:
            self._build_sub_configs()
        super().__post_init__(**kwargs)
        _require(
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
        _require(
            self.encoder_attention in ENCODER_ATTENTIONS,
            f"`encoder_attention` must be one of {list(ENCODER_ATTENTIONS)}, got {self.encoder_attention!r}.",
        )
        names = ("encoder_chunk_s", "encoder_left_context_s", "encoder_lookahead_s")
        if self.encoder_attention == "full":
            for name in (*names, "encoder_training_chunks_s"):
                _require(
                    getattr(self, name) is None,
                    f"`{name}` is an option of `encoder_attention='chunked'`; set that too.",
                )
            return
        _require(
            self.encoder_attention in find_speech_encoder(self.audio_config).attentions,
            "`encoder_attention='chunked'` is for Whisper's and Voxtral's encoders, and `audio_config` has model_type "
            f"{self.audio_config.model_type!r}; use 'full'.",
        )
        _require(
            self.encoder_padding == "longest",
            "`encoder_padding='max_length'` fills up recordings with silence below their loudest frame, which a stream does not "
            "know; use 'longest' with `encoder_attention='chunked'`.",
        )
        for name, default in zip(names, DEFAULT_CHUNKS_S, strict=True):
            if getattr(self, name) is None:
                setattr(self, name, default)
        if self.encoder_training_chunks_s is not None:
            _require(
                len(self.encoder_training_chunks_s) > 0, "`encoder_training_chunks_s` must have at least one entry."
            )
            for seconds in self.encoder_training_chunks_s:
                self._count_frames("encoder_training_chunks_s", seconds, 1)
        _require(self.attention_chunks is not None, "`encoder_attention` has no chunks.")

    def _count_frames(self, name: str, seconds: float | None, fewest: int) -> int:
        num_frames = (seconds or 0) * self.audio_frame_rate
        _require(
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
        """Seconds after the start of an encoder frame that the projector's convolutions and CIF's weights wait for."""
        projector_config = self.projector_config
        reach, frames, scale = projector_config.conv_kernel_size // 2, 0, 1
        for stride in projector_config.conv_strides or ():
            frames, scale = frames + reach * scale, scale * stride
        return (frames + (reach * scale if projector_config.uses_cif else 0)) / self.audio_frame_rate

    @property
    def projector_frame_period(self) -> float:
        """Seconds from one frame after the projector's convolutions to the next, of which CIF weighs each."""
        return self.projector_config.downsampling / self.audio_frame_rate


__all__ = ["PROJECTOR_TYPES", "LlmAsrConfig", "LlmAsrProjectorConfig"]
