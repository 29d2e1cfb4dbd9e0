"""Writes tiny random checkpoints of published speech language models, in their published form. Their windows last 4 s."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_models import make_tokenizer, save_tiny_whisper
from tiny_speech_encoders import GRANITE_ENCODER, draw_statistics
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES


TEXT = {
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
AUDIO = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 200,
    "initializer_range": 0.2,
}
# Templates as the publishers write them: contents are lists, and a system message may be added.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'audio' %}AUDIO"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GLM = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{% for c in m['content'] %}{% if c['type'] == 'audio' %}"
    "<|begin_of_audio|><|pad|><|end_of_audio|><|{{ m['role'] }}|>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# It always writes a system message, which holds the context.
QWEN3_ASR = (
    "{%- set ns = namespace(context='', audio='', answer=none) -%}{%- for m in messages -%}{%- for c in m['content'] -%}"
    "{%- if c['type'] == 'audio' -%}{%- set ns.audio = ns.audio + '<|audio_start|><|audio_pad|><|audio_end|>' -%}"
    "{%- elif m['role'] == 'system' -%}{%- set ns.context = ns.context + c['text'] -%}"
    "{%- elif m['role'] == 'assistant' -%}{%- set ns.answer = c['text'] -%}{%- endif -%}{%- endfor -%}{%- endfor -%}"
    "{{- '<|im_start|>system\\n' + ns.context + '<|im_end|>\\n<|im_start|>user\\n' + ns.audio + '<|im_end|>\\n' -}}"
    "{%- if ns.answer is not none -%}{{- '<|im_start|>assistant\\n' + ns.answer + '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
GRANITE = (
    "{{ '<|start_of_role|>system<|end_of_role|>Today is Granite\\'s day.<|end_of_text|>\\n' }}{% for m in messages %}"
    "{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' }}{% for c in m['content'] %}{% if c['type'] == 'audio' %}<|audio|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|end_of_text|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)


def save_model(
    folder: str, config: PreTrainedConfig, tokenizer, dtype: torch.dtype = torch.float32, **save_kwargs
) -> PreTrainedModel:
    model = AutoModelForSeq2SeqLM.from_config(config)
    draw_statistics(model)
    model.to(dtype)
    # As published for conversation.
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, top_k=20
    )
    model.save_pretrained(folder, **save_kwargs)
    return model


def _save(folder: str, model_type: str, processor, dtype: torch.dtype, options: dict, **save_kwargs) -> None:
    save_model(folder, AutoConfig.for_model(model_type, **options), processor.tokenizer, dtype, **save_kwargs)
    processor.save_pretrained(folder)


def _extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=16, chunk_length=4)


def _text(model_type: str, tokenizer, **options) -> dict:
    return {"model_type": model_type, "vocab_size": len(tokenizer), **TEXT, **options}


def _tokenizer(*special_tokens: str, **named: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(chat_template=None)
    tokenizer.add_special_tokens({"extra_special_tokens": list(special_tokens)})
    if not named:
        return tokenizer
    special = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token, "extra_special_tokens": named}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **special)


def save_qwen2_audio(folder: str, dtype: torch.dtype = torch.float32, **save_kwargs) -> None:
    from transformers import Qwen2AudioProcessor

    tokenizer = _tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    # Its processor has a template of its own.
    processor = Qwen2AudioProcessor(_extractor(), tokenizer)
    audio = {"model_type": "qwen2_audio_encoder", **AUDIO}
    options = {"audio_config": audio, "text_config": _text("qwen2", tokenizer)}
    options["audio_token_index"] = processor.audio_token_id
    _save(folder, "qwen2_audio", processor, dtype, options, **save_kwargs)


def save_audio_flamingo_3(folder: str) -> None:
    from transformers import AudioFlamingo3Processor

    tokenizer = _tokenizer("<sound>")
    processor = AudioFlamingo3Processor(_extractor(), tokenizer, chat_template=CHATML.replace("AUDIO", "<sound>"))
    audio = {"model_type": "audioflamingo3_encoder", **AUDIO}
    options = {"audio_config": audio, "text_config": _text("qwen2", tokenizer)}
    options["audio_token_id"] = processor.audio_token_id
    _save(folder, "audioflamingo3", processor, torch.float32, options)


def save_glm_asr(folder: str) -> None:
    from transformers import GlmAsrProcessor

    tokenizer = _tokenizer("<|begin_of_audio|>", "<|end_of_audio|>", "<|pad|>", "<|user|>", "<|assistant|>")
    processor = GlmAsrProcessor(_extractor(), tokenizer, chat_template=GLM)
    audio = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    audio.update(num_mel_bins=16, max_position_embeddings=200, initializer_range=0.2)
    options = {"audio_config": audio, "text_config": _text("llama", tokenizer)}
    options["audio_token_id"] = processor.audio_token_id
    _save(folder, "glmasr", processor, torch.float32, options)


def save_qwen3_asr(folder: str) -> None:
    from transformers import Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

    tokenizer = _tokenizer(
        audio_token="<|audio_pad|>", audio_bos_token="<|audio_start|>", audio_eos_token="<|audio_end|>"
    )
    # The tag is text, which `skip_special_tokens` keeps.
    tokenizer.add_tokens(["<asr_text>"])
    processor = Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(feature_size=16), tokenizer, chat_template=QWEN3_ASR)
    audio = {name: value for name, value in AUDIO.items() if name != "max_source_positions"}
    audio.update(model_type="qwen3_asr_encoder", downsample_hidden_size=4, output_dim=40)
    options = {"audio_config": audio, "text_config": _text("qwen3", tokenizer, head_dim=8, tie_word_embeddings=True)}
    options["audio_token_id"] = processor.audio_token_id
    _save(folder, "qwen3_asr", processor, torch.float32, options)


def make_granite_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = _tokenizer("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|audio|>")
    tokenizer.chat_template = GRANITE
    return tokenizer


def make_granite_config(tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    qformer = {"model_type": "blip_2_qformer", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    qformer.update(intermediate_size=24, encoder_hidden_size=32, cross_attention_frequency=1, hidden_act="gelu")
    audio_token_id = tokenizer.convert_tokens_to_ids("<|audio|>")
    text = _text("granite", tokenizer, logits_scaling=2.0, embedding_multiplier=3.0)
    # The audio token has no row in the embedding.
    text["vocab_size"] = audio_token_id
    return AutoConfig.for_model(
        "granite_speech",
        encoder_config=GRANITE_ENCODER,
        projector_config=qformer,
        text_config=text,
        audio_token_index=audio_token_id,
        has_lora_adapter=False,
    )


def save_granite_speech(folder: str) -> None:
    from transformers import GraniteSpeechFeatureExtractor, GraniteSpeechProcessor

    tokenizer = make_granite_tokenizer()
    processor = GraniteSpeechProcessor(GraniteSpeechFeatureExtractor(), tokenizer, chat_template=GRANITE)
    save_model(folder, make_granite_config(tokenizer), tokenizer)
    processor.save_pretrained(folder)


def _write_tekken(file: Path) -> None:
    """Write Mistral's format of a tokenizer, with a token for each byte and the ids of Voxtral's special tokens."""
    names = "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] [IMG] "
    names += "<pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
    special = {**dict(enumerate(names.split())), 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]"}
    tokens = [
        {"rank": rank, "token_str": special.get(rank, f"<SPECIAL_{rank}>"), "is_control": True} for rank in range(40)
    ]
    merged = [b"la", b"ng", b"lang", b"en", b"es"]
    vocab = [bytes([byte]) for byte in range(256)] + merged
    audio = {
        "sampling_rate": 16_000,
        "frame_rate": 12.5,
        "audio_encoding_config": {"num_mel_bins": 16, "hop_length": 160, "window_size": 400},
        "chunk_length_s": 4.0,
    }
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+",
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(vocab) + len(tokens),
        "default_num_special_tokens": len(tokens),
        "version": "v7",
    }
    words = [
        {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": word.decode(errors="replace")}
        for rank, word in enumerate(vocab)
    ]
    content = {"config": config, "vocab": words, "special_tokens": tokens, "audio": audio}
    file.write_text(json.dumps(content), encoding="utf-8")


def save_voxtral(folder: str) -> None:
    num_tokens = 40 + 256 + 5
    audio = {name: value for name, value in AUDIO.items() if name not in ("encoder_ffn_dim", "d_model")}
    # The width of the feed-forward layers is that of four stacked frames.
    audio.update(model_type="voxtral_encoder", hidden_size=32, intermediate_size=128)
    text = {"model_type": "llama", "vocab_size": num_tokens, **TEXT}
    config = AutoConfig.for_model("voxtral", audio_config=audio, text_config=text, audio_token_id=24)
    model = AutoModelForSeq2SeqLM.from_config(config)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=11)
    model.save_pretrained(folder)
    _extractor().save_pretrained(folder)
    _write_tekken(Path(folder, "tekken.json"))


def save_ultravox(folder: str) -> None:
    """Save projector and language model, as published. The speech encoder is in a folder of its own, which `config.json` names."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    encoder = str(Path(folder, "encoder"))
    save_tiny_whisper(encoder, seconds=4)
    text = {"vocab_size": len(tokenizer), **TEXT}
    language_model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **text))
    shapes = {"ln_pre": (4 * 32,), "linear_1": (48, 4 * 32), "ln_mid": (24,), "linear_2": (40, 24)}
    weights = {f"multi_modal_projector.{name}.weight": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    weights |= {f"language_model.{name}": one for name, one in language_model.state_dict().items()}
    save_file(weights, Path(folder, "model.safetensors"), {"format": "pt"})
    config = {
        "model_type": "ultravox",
        "auto_map": {"AutoConfig": "ultravox_config.UltravoxConfig", "AutoModel": "ultravox_model.UltravoxModel"},
        "audio_model_id": encoder,
        "audio_latency_block_size": None,
        "hidden_size": 48,
        "stack_factor": 4,
        "projector_act": "swiglu",
        "projector_ln_mid": True,
        "text_config": {"model_type": "qwen2", **text},
    }
    Path(folder, "config.json").write_text(json.dumps(config))


# The `model_type` and the writer of each family. A writer's names are imported late, because not all versions of Transformers
# have all of them.
SAVERS: dict[str, Callable[[str], object]] = {
    "qwen2_audio": save_qwen2_audio,
    "audioflamingo3": save_audio_flamingo_3,
    "glmasr": save_glm_asr,
    "voxtral": save_voxtral,
    "qwen3_asr": save_qwen3_asr,
    "granite_speech": save_granite_speech,
}


def reason_of_absence(model_type: str) -> str:
    """Why this environment has no such family. Empty if it does."""
    if model_type not in CONFIG_MAPPING_NAMES:
        return f"this version of Transformers has no {model_type}"
    if model_type == "granite_speech":
        from transformers import GraniteSpeechFeatureExtractor

        try:
            GraniteSpeechFeatureExtractor()
        except ImportError as error:
            return str(error).strip().splitlines()[0]
    return ""
