"""Writes tiny random speech encoders and language models with their preprocessing."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from llm_asr import LlmAsrForConditionalGeneration, LlmAsrProcessor


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Small sizes for tests. Each option has another value.
PROJECTOR_KWARGS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "expert_hidden_size": 16,
    "qformer_window_size": 6,
    "qformer_num_queries": 2,
    "qformer_num_attention_heads": 4,
    "qformer_intermediate_size": 40,
    "initializer_range": 0.2,
}


def save_tiny_whisper(folder: str, seconds: int = 3) -> None:
    """Save a Whisper model with a window of `seconds`."""
    config = WhisperConfig(
        vocab_size=64,
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        max_source_positions=50 * seconds,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.2,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config.suppress_tokens = None
    model.generation_config.begin_suppress_tokens = None
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=seconds).save_pretrained(folder)


def save_tiny_wav2vec2_bert(folder: str, **kwargs) -> None:
    config = Wav2Vec2BertConfig(
        vocab_size=None,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        feature_projection_input_dim=160,
        conv_depthwise_kernel_size=7,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        layerdrop=0.0,
        **kwargs,
    )
    Wav2Vec2BertModel(config).save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)


def save_tiny_parakeet(folder: str) -> None:
    """Save a Parakeet encoder. It reduces the number of frames by four, and its frames of 40 ms are twice as long as Whisper's."""
    config = ParakeetEncoderConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_kernel_size=5,
        subsampling_factor=4,
        subsampling_conv_channels=8,
        num_mel_bins=16,
        layerdrop=0.0,
        initializer_range=0.2,
    )
    ParakeetEncoder(config).save_pretrained(folder)
    ParakeetFeatureExtractor(feature_size=16).save_pretrained(folder)


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["one two three four five", "uno dos tres cuatro cinco"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=chat_template,
    )


def make_whisper_tokenizer() -> WhisperTokenizer:
    """A tokenizer with the control tokens for Whisper's timestamps."""
    vocabulary = json.loads(make_tokenizer().backend_tokenizer.to_str())["model"]
    tokenizer = WhisperTokenizer(vocab=vocabulary["vocab"], merges=[tuple(merge) for merge in vocabulary["merges"]])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|startoftranscript|>", "<|notimestamps|>"]})
    return tokenizer


def _text_sizes(tokenizer: PreTrainedTokenizerFast) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save_tiny_qwen2(folder: str, tie_word_embeddings: bool = False) -> None:
    tokenizer = make_tokenizer()
    config = Qwen2Config(**_text_sizes(tokenizer), tie_word_embeddings=tie_word_embeddings)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_tiny_llama(folder: str) -> None:
    """Save a Llama model without a chat template and without a padding token, like many published base models."""
    tokenizer = make_tokenizer(chat_template=None)
    LlamaForCausalLM(LlamaConfig(**_text_sizes(tokenizer))).save_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)


def compose(
    parts: dict[str, str], projector_type: str, audio: str = "whisper", text: str = "qwen2", **kwargs
) -> tuple[LlmAsrForConditionalGeneration, LlmAsrProcessor]:
    """Compose a tiny model and its processor."""
    # Module fixtures run before the seeding of tests, so set the seed here.
    torch.manual_seed(0)
    options = {"log_mel_maximum": "running"} if kwargs.get("encoder_attention") == "chunked" else {}
    processor = LlmAsrProcessor.from_audio_text_pretrained(parts[audio], parts[text], **options)
    model = LlmAsrForConditionalGeneration.from_audio_text_pretrained(
        parts[audio], parts[text], projector_type=projector_type, **{**PROJECTOR_KWARGS, **kwargs}
    )
    torch.manual_seed(0)
    return model, processor


def pad_recordings(
    frames: list[torch.Tensor], padding_value: float = 0.0, num_frames: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack frames of several lengths, at least `num_frames` long, with their boolean mask."""
    lengths = torch.tensor([len(frame) for frame in frames])
    num_frames = max(num_frames, int(lengths.max()))
    padded = frames[0].new_full((len(frames), num_frames, frames[0].shape[1]), padding_value)
    for row, frame in enumerate(frames):
        padded[row, : len(frame)] = frame
    return padded, torch.arange(num_frames) < lengths[:, None]
