"""Configuration of the projector."""

import math

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .configuration_checks import require


# Keywords that `PreTrainedConfig` accepts or writes, besides its fields.
INHERITED_OPTIONS = (
    "attn_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
)

PROJECTOR_TYPES = ("conv", "moe", "cif", "moe_cif", "stack", "moe_stack", "qformer", "moe_qformer", "ctc", "moe_ctc")
ROUTER_TYPES = ("linear", "mlp")
ROUTING_LEVELS = ("frame", "utterance")
MERGES = ("output", "parameters")
MLP_NORMS = ("input", "hidden", "output")
STACK_REMAINDERS = ("pad", "drop")
QFORMER_REMAINDERS = ("mask", "zeros")

# Several times the number that the fastest speech needs at the lowest frame rates.
MAX_FIRES_PER_FRAME = 16

# Wider than any use needs. Outside this range, CIF fires never or everywhere.
CIF_RANGE = (0.01, 100.0)
MAX_CONVOLUTIONS, MAX_DOWNSAMPLING = 16, 64
# Several minutes of frames, more queries than any window needs, and more layers than any Q-Former has.
MAX_WINDOW, MAX_QUERIES, MAX_QFORMER_LAYERS = 20_000, 4096, 100


@strict
class LlmAsrProjectorConfig(PreTrainedConfig):
    r"""
    Configuration of the projector that turns speech-encoder frames into embeddings of the language model.

    Every field is checked at construction; an impossible value raises a `ValueError` that names the field.

    Args:
        projector_type (`str`, *optional*, defaults to `"moe_cif"`):
            How frames become embeddings: `"conv"` (strided convolutions, fixed rate), `"cif"` (Continuous
            Integrate-and-Fire, dynamic rate), `"stack"` (`stack_size` frames beside each other, fixed rate), `"qformer"` (learned
            queries over windows of frames, fixed rate) or `"ctc"` (frames with the same label of a CTC head, dynamic rate), each
            with two linear layers; or `"moe"`, `"moe_cif"`, `"moe_stack"`, `"moe_qformer"` and `"moe_ctc"`, the same with a
            mixture of experts in their place.
        hidden_size (`int`, *optional*, defaults to 1024):
            Width of the convolutions, or of the Q-Former.
        intermediate_size (`int`, *optional*, defaults to 2048):
            Width of the hidden layer between the two linear layers of the types without experts. `None` leaves one linear
            layer without activation.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the convolutions, the linear layers and the experts.
        mlp_bias (`bool`, *optional*, defaults to `True`):
            Whether the linear layers of the types without experts have biases.
        mlp_gated (`bool`, *optional*, defaults to `False`):
            Whether the first linear layer gives twice `intermediate_size`, and the activation of its second half multiplies
            its first half: SwiGLU (arXiv 2002.05202) with `hidden_act="silu"`.
        mlp_norms (`list[str]`, *optional*):
            Where the types without experts have root mean square normalisation (arXiv 1910.07467): `"input"` (before the
            first linear layer), `"hidden"` (after the activation) and `"output"` (after the last linear layer).
        stack_size (`int`, *optional*, defaults to 4):
            Frames of the speech encoder that `"stack"` puts beside each other.
        stack_remainder (`str`, *optional*, defaults to `"pad"`):
            `"pad"` fills up the last frames of a recording with zeros if they are fewer than `stack_size`; `"drop"` leaves
            them out, so that a recording shorter than `stack_size` frames has no embedding.
        qformer_window_size (`int`, *optional*, defaults to 15):
            Frames of the speech encoder in one window of `"qformer"`.
        qformer_num_queries (`int`, *optional*, defaults to 3):
            Embeddings of a window.
        qformer_num_hidden_layers (`int`, *optional*, defaults to 2):
            Layers of the Q-Former.
        qformer_num_attention_heads (`int`, *optional*, defaults to 16):
            Heads of its attention; a divisor of `hidden_size`.
        qformer_intermediate_size (`int`, *optional*, defaults to 4096):
            Width of its feed-forward layers.
        qformer_cross_attention_frequency (`int`, *optional*, defaults to 1):
            Queries attend to frames in the first of as many layers, and to one another in all layers.
        qformer_remainder (`str`, *optional*, defaults to `"mask"`):
            What the queries see of the frames that are missing in the last window of a recording: nothing (`"mask"`), or
            zeros (`"zeros"`), as in Granite Speech.
        conv_kernel_size (`int`, *optional*, defaults to 3):
            Kernel of each convolution, in frames; odd, so that frame `t` of the output is centred on frame
            `t * stride` of the input.
        conv_strides (`list[int]`, *optional*):
            Stride of each convolution. Defaults to `[2, 2]` for the fixed-rate types with convolutions (four frames to one
            embedding, as in the paper) and `[2]` for the CIF types, where CIF does the rest.
        num_experts (`int`, *optional*, defaults to 8):
            Number of routed experts.
        num_experts_per_tok (`int`, *optional*, defaults to 2):
            Experts that each frame is sent to. `num_experts_per_tok == num_experts` is the dense mixture of MOSA
            (arXiv 2508.18998).
        expert_hidden_size (`int`, *optional*, defaults to 1024):
            Width of the hidden layer of one expert.
        expert_bias (`bool`, *optional*, defaults to `False`):
            Whether the two layers of a routed expert have biases, as the linear layers of the types without experts have.
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
        ctc_loss_coef (`float`, *optional*, defaults to 1.0):
            Weight of the CTC loss of `"ctc"`, `-log p(transcript | frames)` per label (Graves et al., 2006).
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
            Firing rate of the untrained CIF weights: the bias of the weight predictor is initialised to it. Estimates of costs
            use it for `"ctc"` too.
        initializer_range (`float`, *optional*):
            Standard deviation of the normal initialisation of all weight matrices. By default `1 / sqrt(fan_in)` for each
            (LeCun et al., 1998, "Efficient BackProp", section 4.6), by which how loud embeddings begin depends on no width, and
            0.02 for what routes and weighs frames.
    """

    model_type = "llm_asr_projector"

    projector_type: str = "moe_cif"
    hidden_size: int = 1024
    intermediate_size: int | None = 2048
    hidden_act: str = "gelu"
    mlp_bias: bool = True
    mlp_gated: bool = False
    mlp_norms: list[str] | tuple[str, ...] | None = None
    stack_size: int = 4
    stack_remainder: str = "pad"
    qformer_window_size: int = 15
    qformer_num_queries: int = 3
    qformer_num_hidden_layers: int = 2
    qformer_num_attention_heads: int = 16
    qformer_intermediate_size: int = 4096
    qformer_cross_attention_frequency: int = 1
    qformer_remainder: str = "mask"
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
    ctc_loss_coef: float | int = 1.0
    draft_head: bool = False
    draft_residual: bool = False
    draft_loss_coef: float | int = 0.3
    expected_tokens_per_second: float | int = 4.0
    initializer_range: float | int | None = None

    def __post_init__(self, **kwargs):
        # `PreTrainedConfig` keeps unknown keys as attributes, which would turn a misspelt option into a silent default.
        unknown = sorted(name for name in kwargs if name not in INHERITED_OPTIONS and not name.startswith("_"))
        require(not unknown, f"`projector_config` has no option named {unknown}; correct or remove it.")
        for name, choices in (
            ("projector_type", PROJECTOR_TYPES),
            ("router_type", ROUTER_TYPES),
            ("routing_level", ROUTING_LEVELS),
            ("merge", MERGES),
            ("stack_remainder", STACK_REMAINDERS),
            ("qformer_remainder", QFORMER_REMAINDERS),
        ):
            value = getattr(self, name)
            require(value in choices, f"`{name}` must be one of {list(choices)}, got {value!r}.")
        self._check_strides()
        self._check_mlp()
        for name in (
            "hidden_size",
            "stack_size",
            "qformer_window_size",
            "qformer_num_queries",
            "qformer_num_hidden_layers",
            "qformer_num_attention_heads",
            "qformer_intermediate_size",
            "qformer_cross_attention_frequency",
            "num_experts",
            "num_experts_per_tok",
            "expert_hidden_size",
            "router_hidden_size",
            "conv_kernel_size",
        ):
            require(getattr(self, name) >= 1, f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in (
            "num_shared_experts",
            "router_aux_loss_coef",
            "router_bias_update_rate",
            "router_z_loss_coef",
            "quantity_loss_coef",
            "ctc_loss_coef",
            "draft_loss_coef",
            "cif_noise_threshold",
            "initializer_range",
        ):
            value = getattr(self, name)
            require(
                value is None or (math.isfinite(value) and value >= 0),
                f"`{name}` must not be negative or infinite, got {value}.",
            )
        for name in ("cif_threshold", "cif_smooth_factor", "expected_tokens_per_second"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"`{name}` must be positive and finite, got {value}.")
        require(
            self.hidden_act in ACT2FN,
            f"`hidden_act` must be one of Transformers' activations, such as 'gelu', got {self.hidden_act!r}.",
        )
        require(
            0 < self.cif_tail_threshold <= 1,
            f"`cif_tail_threshold` is a fraction of `cif_threshold` in (0, 1], got {self.cif_tail_threshold}.",
        )
        require(
            self.cif_smooth_factor <= MAX_FIRES_PER_FRAME * self.cif_threshold,
            f"`cif_smooth_factor` ({self.cif_smooth_factor}) must be at most {MAX_FIRES_PER_FRAME} times `cif_threshold` "
            f"({self.cif_threshold}): a frame fires as many embeddings.",
        )
        for name in ("cif_threshold", "cif_smooth_factor"):
            low, high = CIF_RANGE
            value = getattr(self, name)
            require(low <= value <= high, f"`{name}` must be from {low:g} to {high:g}, got {value}.")
        require(
            self.cif_noise_threshold < self.cif_smooth_factor,
            f"`cif_noise_threshold` ({self.cif_noise_threshold}) must be below `cif_smooth_factor` "
            f"({self.cif_smooth_factor}), or no frame weighs anything.",
        )
        require(
            self.conv_kernel_size % 2 == 1,
            f"`conv_kernel_size` must be odd so that frames stay centred, got {self.conv_kernel_size}.",
        )
        for name, most in (
            ("stack_size", MAX_DOWNSAMPLING),
            ("qformer_window_size", MAX_WINDOW),
            ("qformer_num_queries", MAX_QUERIES),
            ("qformer_num_hidden_layers", MAX_QFORMER_LAYERS),
        ):
            require(getattr(self, name) <= most, f"`{name}` must be at most {most}, got {getattr(self, name)}.")
        require(
            self.reduction != "qformer" or self.hidden_size % self.qformer_num_attention_heads == 0,
            f"`qformer_num_attention_heads` ({self.qformer_num_attention_heads}) must divide `hidden_size` ({self.hidden_size}).",
        )
        require(
            self.num_experts_per_tok <= self.num_experts,
            f"`num_experts_per_tok` ({self.num_experts_per_tok}) must not exceed `num_experts` ({self.num_experts}).",
        )
        require(
            0 <= self.router_jitter_noise < 1,
            f"`router_jitter_noise` must be in [0, 1), got {self.router_jitter_noise}.",
        )
        require(
            self.merge == "output" or self.routing_level == "utterance",
            "`merge='parameters'` makes one expert for each recording; set `routing_level='utterance'`.",
        )
        require(
            not self.router_bias_update_rate or self.num_experts_per_tok < self.num_experts,
            "`router_bias_update_rate` balances a choice, and `num_experts_per_tok == num_experts` leaves none; set it to "
            "zero.",
        )
        require(
            not self.draft_head or self.uses_cif,
            f"`draft_head` reads one token off each of CIF's embeddings, and `projector_type` is {self.projector_type!r}; use "
            "'cif' or 'moe_cif'.",
        )
        require(
            self.draft_head or not self.draft_residual,
            "`draft_residual` is an option of the draft head; set `draft_head=True`.",
        )
        super().__post_init__(**kwargs)

    def _check_strides(self) -> None:
        if not self.uses_convolutions:
            require(
                self.conv_strides is None,
                f"`conv_strides` is an option of convolutions, and `projector_type={self.projector_type!r}` has none; leave it "
                "out.",
            )
            return
        if self.conv_strides is None:
            self.conv_strides = [2] if self.uses_cif else [2, 2]
        self.conv_strides = list(self.conv_strides)
        require(
            len(self.conv_strides) >= 1 and all(stride >= 1 for stride in self.conv_strides),
            f"`conv_strides` must hold at least one stride, each at least 1, got {self.conv_strides}.",
        )
        product = math.prod(self.conv_strides)
        require(
            len(self.conv_strides) <= MAX_CONVOLUTIONS and product <= MAX_DOWNSAMPLING,
            f"`conv_strides` must be at most {MAX_CONVOLUTIONS} and make one frame of at most {MAX_DOWNSAMPLING}, got "
            f"{len(self.conv_strides)} that make one of {product}.",
        )

    def _check_mlp(self) -> None:
        self.mlp_norms = list(self.mlp_norms or ())
        require(
            all(norm in MLP_NORMS for norm in self.mlp_norms) and len(set(self.mlp_norms)) == len(self.mlp_norms),
            f"`mlp_norms` may have each of {list(MLP_NORMS)} once, got {self.mlp_norms}.",
        )
        require(
            self.intermediate_size is None or self.intermediate_size >= 1,
            f"`intermediate_size` must be at least 1, or `None` for one linear layer, got {self.intermediate_size}.",
        )
        if self.intermediate_size is None:
            require(
                not self.mlp_gated and "hidden" not in self.mlp_norms,
                "`mlp_gated` and the 'hidden' of `mlp_norms` are options of the hidden layer, which `intermediate_size=None` "
                "leaves out; set `intermediate_size`.",
            )
        plain = {"intermediate_size": self.intermediate_size is not None, "mlp_bias": self.mlp_bias}
        plain.update(mlp_gated=not self.mlp_gated, mlp_norms=not self.mlp_norms)
        others = [f"`{name}`" for name, is_plain in plain.items() if not is_plain]
        require(
            not self.uses_experts or not others,
            f"{', '.join(others)}: an option of linear layers, in whose place `projector_type={self.projector_type!r}` has experts; "
            "leave it out.",
        )

    @property
    def reduction(self) -> str:
        """How frames become fewer: the projector type without experts."""
        return "conv" if self.projector_type == "moe" else self.projector_type.removeprefix("moe_")

    @property
    def uses_convolutions(self) -> bool:
        """Whether strided convolutions are the first layers."""
        return self.reduction not in ("stack", "qformer")

    @property
    def uses_cif(self) -> bool:
        """Whether Continuous Integrate-and-Fire determines the number of embeddings of a recording."""
        return self.reduction == "cif"

    @property
    def uses_ctc(self) -> bool:
        """Whether the labels of a CTC head determine the number of embeddings of a recording."""
        return self.reduction == "ctc"

    @property
    def has_dynamic_rate(self) -> bool:
        """Whether the number of embeddings depends on what is said, and not on the length of a recording alone."""
        return self.uses_cif or self.uses_ctc

    @property
    def uses_experts(self) -> bool:
        """Whether frames are routed to experts."""
        return self.projector_type.startswith("moe")

    @property
    def downsampling(self) -> int | float:
        """Encoder frames per frame after the convolutions, or per embedding of the types without convolutions."""
        if self.reduction == "qformer":
            return self.qformer_window_size / self.qformer_num_queries
        return self.stack_size if self.reduction == "stack" else math.prod(self.conv_strides or ())

    @property
    def block_size(self) -> int | None:
        """Encoder frames that are reduced together and apart from all others; `None` where there are no such blocks."""
        if self.reduction == "qformer":
            return self.qformer_window_size
        return self.stack_size if self.reduction == "stack" else None

    def reduced_size(self, audio_size: int) -> int:
        """Size of a reduced frame, which the layers into the text space take, for encoder frames of `audio_size`."""
        return audio_size * self.stack_size if self.reduction == "stack" else self.hidden_size


__all__ = ["PROJECTOR_TYPES", "LlmAsrProjectorConfig"]
