"""Tiny random checkpoints of the families of causal language models in the documentation."""

import torch
from tiny_models import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM


# Sizes with the same names in all families.
COMMON = {
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
# The attention window is shorter than prompts with audio.
WINDOW = 8

LANGUAGE_MODELS: dict[str, dict] = {
    "qwen2": {},
    "qwen3": {"head_dim": 10},
    "llama": {"tie_word_embeddings": True},
    "mistral": {"head_dim": 10, "sliding_window": WINDOW},
    "ministral": {"head_dim": 10, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma": {"head_dim": 10},
    # The soft cap is lower than the largest logits.
    "gemma2": {
        "head_dim": 10,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
        "sliding_window": WINDOW,
    },
    "gemma3_text": {
        "head_dim": 10,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "final_logit_softcapping": 3.0,
    },
    # This model also reads images. Only its language model is used.
    "gemma3": {
        "text_config": {**COMMON, "head_dim": 10, "vocab_size": 300, "sliding_window": WINDOW},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
    },
    # The head of this family has a bias.
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.4},
    "phi3": {},
    "granite": {
        "logits_scaling": 4.0,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.5,
    },
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25, "sliding_window": WINDOW, "head_dim": 10},
    "olmo2": {},
    "smollm3": {},
    "glm4": {"head_dim": 10},
    "starcoder2": {},
    "stablelm": {},
    "gpt2": {"n_embd": 40, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 40},
    "qwen3_moe": {"head_dim": 10, "num_experts": 4, **EXPERTS},
    "mixtral": {"head_dim": 10, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 2.0},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 64, "conv_L_cache": 3},
    "bamba": {
        "attn_layer_indices": [1],
        "mamba_n_heads": 4,
        "mamba_d_head": 20,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    },
    "falcon_h1": {
        "head_dim": 10,
        "mamba_d_ssm": 40,
        "mamba_n_heads": 4,
        "mamba_d_head": 10,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
        "lm_head_multiplier": 0.5,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
    },
}


# Language models that are refused.
REFUSED: dict[str, dict] = {
    "mamba2": {"num_heads": 4, "head_dim": 20, "state_size": 8, "n_groups": 1, "chunk_size": 16, "expand": 2},
    "falcon_h1": {**LANGUAGE_MODELS["falcon_h1"], "embedding_multiplier": 2.0},
}


def save_tiny_language_model(name: str, folder: str, **options) -> None:
    """Save a checkpoint of the family `name`. `options` replace those in `LANGUAGE_MODELS`."""
    tokenizer = make_tokenizer()
    sizes = {} if name in ("gpt2", "gemma3") else COMMON
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        name, **{**sizes, **tokens, "vocab_size": len(tokenizer), **(options or LANGUAGE_MODELS[name])}
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # Initial biases and norms are constants. Random values show whether they are lost.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
