import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, LlamaConfig, Qwen2Config, Wav2Vec2BertConfig, WhisperConfig

from llm_asr import LlmAsrConfig, LlmAsrProjectorConfig
from llm_asr.modeling.configuration_projector import PROJECTOR_TYPES


def test_defaults():
    config = LlmAsrConfig()
    assert isinstance(config.audio_config, WhisperConfig)
    assert isinstance(config.text_config, Qwen2Config)
    assert isinstance(config.projector_config, LlmAsrProjectorConfig)
    assert config.projector_config.projector_type == "moe_cif"
    assert config.audio_token_id < config.text_config.vocab_size


@pytest.mark.parametrize(
    ("projector_type", "uses_cif", "strides", "downsampling"),
    [
        ("conv", False, [2, 2], 4),
        ("moe", False, [2, 2], 4),
        ("cif", True, [2], 2),
        ("moe_cif", True, [2], 2),
        ("stack", False, None, 4),
        ("moe_stack", False, None, 4),
        ("qformer", False, None, 5),
        ("moe_qformer", False, None, 5),
        ("ctc", False, [2, 2], 4),
        ("moe_ctc", False, [2, 2], 4),
    ],
)
def test_properties_follow_the_projector_type(projector_type, uses_cif, strides, downsampling):
    config = LlmAsrProjectorConfig(projector_type=projector_type)
    assert config.uses_cif is uses_cif
    assert config.conv_strides == strides
    assert config.downsampling == downsampling


def test_downsampling_is_the_product_of_the_strides():
    assert LlmAsrProjectorConfig(conv_strides=(2, 3, 1)).downsampling == 6


def test_each_type_exists_with_and_without_experts():
    assert PROJECTOR_TYPES[:4] == ("conv", "moe", "cif", "moe_cif")
    assert PROJECTOR_TYPES[4:] == ("stack", "moe_stack", "qformer", "moe_qformer", "ctc", "moe_ctc")
    for plain, with_experts in zip(PROJECTOR_TYPES[::2], PROJECTOR_TYPES[1::2], strict=True):
        configs = [LlmAsrProjectorConfig(projector_type=name) for name in (plain, with_experts)]
        assert [config.uses_experts for config in configs] == [False, True]
        assert [config.reduction for config in configs] == [plain, plain]


def test_sub_configs_from_dicts():
    config = LlmAsrConfig(
        audio_config={"model_type": "wav2vec2-bert", "hidden_size": 32},
        text_config={"model_type": "llama", "hidden_size": 64},
        projector_config={"projector_type": "moe", "num_experts": 3},
    )
    assert isinstance(config.audio_config, Wav2Vec2BertConfig)
    assert isinstance(config.text_config, LlamaConfig)
    assert isinstance(config.projector_config, LlmAsrProjectorConfig)
    assert config.audio_config.hidden_size == 32
    assert config.text_config.hidden_size == 64
    assert config.projector_config.num_experts == 3


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
def test_tie_word_embeddings_follows_the_language_model(tie_word_embeddings):
    config = LlmAsrConfig(text_config=Qwen2Config(tie_word_embeddings=tie_word_embeddings))
    assert config.tie_word_embeddings is tie_word_embeddings


@pytest.mark.parametrize("load", [LlmAsrConfig.from_pretrained, AutoConfig.from_pretrained])
def test_round_trip(tmp_path, load):
    config = LlmAsrConfig(
        audio_config=WhisperConfig(d_model=32),
        text_config=LlamaConfig(hidden_size=64, tie_word_embeddings=True),
        projector_config=LlmAsrProjectorConfig(
            projector_type="cif", conv_strides=[3, 1], cif_threshold=1.5, quantity_loss_coef=0
        ),
        audio_token_id=7,
        audio_frame_rate=25,
    )
    config.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is LlmAsrConfig
    # The folder of a configuration does not count.
    assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    assert loaded.projector_config.conv_strides == [3, 1]
    assert loaded.projector_config.quantity_loss_coef == 0
    assert loaded.text_config.tie_word_embeddings is True


def test_projector_config_round_trip(tmp_path):
    config = LlmAsrProjectorConfig(projector_type="moe", num_experts=5, num_experts_per_tok=5)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LlmAsrProjectorConfig
    assert (loaded.projector_type, loaded.num_experts, loaded.num_experts_per_tok) == ("moe", 5, 5)


IMPOSSIBLE_VALUES = [
    ({"projector_type": "linear"}, "projector_type"),
    ({"projector_type": "moe_cif "}, "projector_type"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"intermediate_size": -1}, "intermediate_size"),
    ({"hidden_act": "no_such_activation"}, "hidden_act"),
    ({"conv_kernel_size": 0}, "conv_kernel_size"),
    ({"conv_kernel_size": 4}, "conv_kernel_size"),
    ({"conv_strides": []}, "conv_strides"),
    ({"conv_strides": [2, 0]}, "conv_strides"),
    ({"conv_strides": [-2]}, "conv_strides"),
    ({"num_experts": 0, "num_experts_per_tok": 0}, "num_experts"),
    ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
    ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok"),
    ({"expert_hidden_size": 0}, "expert_hidden_size"),
    ({"num_shared_experts": -1}, "num_shared_experts"),
    ({"router_type": "cosine"}, "router_type"),
    ({"router_hidden_size": 0}, "router_hidden_size"),
    ({"routing_level": "batch"}, "routing_level"),
    ({"merge": "inputs"}, "merge"),
    ({"merge": "parameters"}, "merge='parameters'"),
    ({"router_jitter_noise": 1.0}, "router_jitter_noise"),
    ({"router_jitter_noise": -0.1}, "router_jitter_noise"),
    ({"router_bias_update_rate": -0.1}, "router_bias_update_rate"),
    ({"num_experts": 4, "num_experts_per_tok": 4, "router_bias_update_rate": 0.1}, "router_bias_update_rate"),
    ({"router_aux_loss_coef": -0.01}, "router_aux_loss_coef"),
    ({"router_aux_loss_coef": float("nan")}, "router_aux_loss_coef"),
    ({"router_z_loss_coef": -1}, "router_z_loss_coef"),
    ({"quantity_loss_coef": -1.0}, "quantity_loss_coef"),
    ({"quantity_loss_coef": float("inf")}, "quantity_loss_coef"),
    ({"ctc_loss_coef": -1.0}, "ctc_loss_coef"),
    ({"cif_threshold": 0}, "cif_threshold"),
    ({"cif_threshold": -1.0}, "cif_threshold"),
    ({"cif_threshold": float("nan")}, "cif_threshold"),
    ({"cif_threshold": float("inf")}, "cif_threshold"),
    ({"cif_tail_threshold": 0.0}, "cif_tail_threshold"),
    ({"cif_tail_threshold": 1.1}, "cif_tail_threshold"),
    ({"expected_tokens_per_second": 0.0}, "expected_tokens_per_second"),
    ({"initializer_range": -0.1}, "initializer_range"),
    ({"projector_type": "stack", "stack_size": 0}, "stack_size"),
    ({"projector_type": "stack", "stack_size": 65}, "stack_size"),
    ({"projector_type": "stack", "stack_remainder": "keep"}, "stack_remainder"),
    ({"projector_type": "stack", "conv_strides": [2]}, "conv_strides"),
    ({"projector_type": "qformer", "conv_strides": [2]}, "conv_strides"),
    ({"projector_type": "qformer", "qformer_window_size": 0}, "qformer_window_size"),
    ({"projector_type": "qformer", "qformer_num_queries": 100_000}, "qformer_num_queries"),
    ({"projector_type": "qformer", "qformer_num_hidden_layers": 1000}, "qformer_num_hidden_layers"),
    ({"projector_type": "qformer", "qformer_num_attention_heads": 3}, "qformer_num_attention_heads"),
    ({"projector_type": "qformer", "qformer_remainder": "drop"}, "qformer_remainder"),
    ({"projector_type": "conv", "mlp_norms": ["middle"]}, "mlp_norms"),
    ({"projector_type": "conv", "mlp_norms": ["input", "input"]}, "mlp_norms"),
    ({"projector_type": "conv", "intermediate_size": None, "mlp_gated": True}, "mlp_gated"),
    ({"projector_type": "conv", "intermediate_size": None, "mlp_norms": ["hidden"]}, "mlp_norms"),
    # Experts take the place of the linear layers.
    ({"projector_type": "moe", "mlp_bias": False}, "mlp_bias"),
    ({"projector_type": "moe_cif", "mlp_gated": True}, "mlp_gated"),
    ({"projector_type": "moe_stack", "mlp_norms": ["output"]}, "mlp_norms"),
    ({"projector_type": "moe", "intermediate_size": None}, "intermediate_size"),
    # With these values, CIF would never fire.
    ({"cif_threshold": 1e6}, "cif_threshold"),
    ({"cif_smooth_factor": 1e-6}, "cif_smooth_factor"),
    ({"conv_strides": [1000, 1000]}, "conv_strides"),
    # A thousand layers would be created before any weight is checked.
    ({"conv_strides": [1] * 1000}, "conv_strides"),
]


@pytest.mark.parametrize(("options", "field"), IMPOSSIBLE_VALUES)
def test_impossible_values_name_their_field(options, field):
    with pytest.raises(ValueError, match=f"`{field}`"):
        LlmAsrProjectorConfig(**options)
    with pytest.raises(ValueError, match=f"`{field}`"):
        LlmAsrConfig(projector_config=options)


@pytest.mark.parametrize("field", ["num_expert", "projector", "threshold"])
def test_misspelt_projector_option_is_named(field):
    with pytest.raises(ValueError, match=field):
        LlmAsrProjectorConfig(**{field: 2})
    with pytest.raises(ValueError, match=field):
        LlmAsrConfig(projector_config={field: 2})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "32"),
        ("num_experts", 2.5),
        ("conv_strides", 2),
        ("conv_strides", [1.5]),
        ("norm_topk_prob", "yes"),
    ],
)
def test_values_of_another_type_name_their_field(field, value):
    # Transformers' strict configurations raise another error type for wrong types.
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=field):
        LlmAsrProjectorConfig(**{field: value})


@pytest.mark.parametrize(
    "field",
    [
        "router_aux_loss_coef",
        "router_z_loss_coef",
        "quantity_loss_coef",
        "cif_threshold",
        "expected_tokens_per_second",
        "initializer_range",
    ],
)
def test_whole_numbers_are_accepted_for_real_options(field):
    assert getattr(LlmAsrProjectorConfig(**{field: 1}), field) == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"audio_token_id": -1}, "audio_token_id"),
        ({"audio_frame_rate": 0}, "audio_frame_rate"),
        ({"audio_frame_rate": -50.0}, "audio_frame_rate"),
    ],
)
def test_impossible_values_of_the_composite_name_their_field(options, field):
    with pytest.raises(ValueError, match=f"`{field}`"):
        LlmAsrConfig(**options)


@pytest.mark.parametrize(
    ("part", "family", "field"),
    [("audio_config", "whisper", "encoder_layers"), ("text_config", "qwen2", "num_hidden_layers")],
)
def test_an_excessive_number_of_layers_is_refused_before_any_is_created(part, family, field):
    with pytest.raises(ValueError, match=f"`{field}` of `{part}` must be at most 2000, got 1000000000"):
        LlmAsrConfig(**{part: {"model_type": family, field: 10**9}})


def test_unknown_family_of_a_part_is_refused():
    with pytest.raises(ValueError, match="no_such_family"):
        LlmAsrConfig(audio_config={"model_type": "no_such_family"})


def test_boundary_values_are_accepted():
    config = LlmAsrProjectorConfig(
        num_experts=2,
        num_experts_per_tok=2,
        router_aux_loss_coef=0,
        router_z_loss_coef=0,
        quantity_loss_coef=0,
        cif_tail_threshold=1,
        conv_kernel_size=1,
        conv_strides=[1],
    )
    assert config.downsampling == 1


def test_encoder_padding_is_checked():
    with pytest.raises(ValueError, match="`encoder_padding` must be one of .*'longest', 'max_length'.*, got '30s'"):
        LlmAsrConfig(encoder_padding="30s")
    with pytest.raises(
        ValueError, match="`encoder_padding=.max_length.` is for encoders whose windows have a fixed length"
    ):
        LlmAsrConfig(encoder_padding="max_length", audio_config={"model_type": "parakeet_encoder"})
