"""Writes tiny random checkpoints of all families of speech encoders, in their published form."""

from collections.abc import Callable

import torch
import transformers
from tiny_models import save_tiny_parakeet, save_tiny_wav2vec2_bert, save_tiny_whisper
from transformers import (
    AutoConfig,
    ParakeetFeatureExtractor,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES


TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
WHISPER_LIKE = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 150,
    "initializer_range": 0.2,
}
TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
GRANITE_ENCODER = {
    "input_dim": 160,
    "num_layers": 2,
    "hidden_dim": 32,
    "num_heads": 2,
    "output_dim": 8,
    "context_size": 20,
    "conv_kernel_size": 5,
    "max_pos_emb": 32,
}
# The seven convolutions of published models, with a stride of 320 samples and a receptive field of 400.
CONVOLUTIONS = {
    "conv_dim": [8] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}


def draw_statistics(model: PreTrainedModel) -> None:
    """Draw the statistics of batch normalisations, so that they differ from those of a new model."""
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)


def _save(folder: str, model_type: str, auto_class: str, feature_extractor, **options) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **options)
    # Find the class by name, because some versions of Transformers lack some of these classes.
    model = getattr(transformers, auto_class).from_config(config)
    model.save_pretrained(folder)
    feature_extractor.save_pretrained(folder)
    return model


def _save_waveform(folder: str, model_type: str, norm: str, auto_class: str = "AutoModel", **options) -> None:
    options = {"initializer_range": 0.2, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, **options}
    options.update(feat_extract_norm=norm, do_stable_layer_norm=norm == "layer", layerdrop=0.0)
    # The default masks of ten frames do not fit into short recordings.
    options.update(mask_time_length=2, vocab_size=16)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=norm == "layer")
    _save(folder, model_type, auto_class, extractor, **TRANSFORMER, **CONVOLUTIONS, **options)


def _save_parakeet_whole(folder: str, model_type: str, **options) -> None:
    encoder = {**TRANSFORMER, "conv_kernel_size": 5, "subsampling_factor": 4, "subsampling_conv_channels": 8}
    encoder.update(num_mel_bins=16, layerdrop=0.0, initializer_range=0.2)
    extractor = ParakeetFeatureExtractor(feature_size=16)
    _save(folder, model_type, "AutoModel", extractor, encoder_config=encoder, **options)


def _save_audio_language_model(folder: str, model_type: str, feature_extractor, audio: dict, **options) -> None:
    options = {"audio_config": audio, "audio_token_id": 3, **options}
    _save(folder, model_type, "AutoModelForSeq2SeqLM", feature_extractor, **options)


def _save_moonshine(folder: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 32, "initializer_range": 0.2}
    sizes.update(encoder_num_hidden_layers=2, decoder_num_hidden_layers=1)
    sizes.update(encoder_num_attention_heads=2, decoder_num_attention_heads=2)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    _save(folder, "moonshine", "AutoModelForSpeechSeq2Seq", extractor, **sizes)


def _save_seamless(folder: str) -> None:
    sizes = {
        "hidden_size": 32,
        "speech_encoder_layers": 2,
        "speech_encoder_attention_heads": 2,
        "speech_encoder_intermediate_size": 48,
        "speech_encoder_layerdrop": 0.0,
        "conv_depthwise_kernel_size": 7,
        "num_adapter_layers": 1,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 16,
        "vocab_size": 32,
        "initializer_range": 0.2,
        "adaptor_stride": 2,
        "adaptor_kernel_size": 2,
    }
    _save(folder, "seamless_m4t_v2", "AutoModelForSpeechSeq2Seq", SeamlessM4TFeatureExtractor(), **sizes)


def _save_granite(folder: str) -> None:
    # This class needs torchaudio.
    from transformers import GraniteSpeechFeatureExtractor

    options = {
        "encoder_config": GRANITE_ENCODER,
        "text_config": {"model_type": "granite", **TEXT},
        "projector_config": {
            "model_type": "blip_2_qformer",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "encoder_hidden_size": 32,
        },
        "audio_token_index": 3,
        "has_lora_adapter": False,
    }
    extractor = GraniteSpeechFeatureExtractor()
    model = _save(folder, "granite_speech", "AutoModelForSpeechSeq2Seq", extractor, **options)
    draw_statistics(model)
    model.save_pretrained(folder)


def _save_glmasr(folder: str) -> None:
    audio = {**TRANSFORMER, "num_mel_bins": 16, "max_position_embeddings": 150, "initializer_range": 0.2}
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=3)
    _save_audio_language_model(folder, "glmasr", extractor, audio, text_config={"model_type": "llama", **TEXT})


def _save_qwen3_asr(folder: str) -> None:
    from transformers import Qwen3ASRFeatureExtractor

    audio = {name: value for name, value in WHISPER_LIKE.items() if name != "max_source_positions"}
    audio.update(model_type="qwen3_asr_encoder", downsample_hidden_size=4, output_dim=16)
    text = {"model_type": "qwen3", **TEXT, "head_dim": 8}
    extractor = Qwen3ASRFeatureExtractor(feature_size=16)
    _save_audio_language_model(folder, "qwen3_asr", extractor, audio, text_config=text)


def _save_whisper_like(folder: str, model_type: str, text_type: str, audio_type: str | None = None) -> None:
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=3)
    # Voxtral and Audio Flamingo map these names to their own fields.
    audio = {"model_type": audio_type or f"{model_type}_encoder", **WHISPER_LIKE}
    _save_audio_language_model(folder, model_type, extractor, audio, text_config={"model_type": text_type, **TEXT})


# The `model_type` and the writer of each checkpoint, by name.
SPEECH_ENCODER_SAVERS: dict[str, tuple[str, Callable[[str], None]]] = {
    "whisper": ("whisper", save_tiny_whisper),
    "wav2vec2": ("wav2vec2", lambda folder: _save_waveform(folder, "wav2vec2", "layer")),
    "wav2vec2-group-norm": ("wav2vec2", lambda folder: _save_waveform(folder, "wav2vec2", "group", "AutoModelForCTC")),
    "mms": (
        "wav2vec2",
        lambda folder: _save_waveform(folder, "wav2vec2", "layer", "AutoModelForCTC", adapter_attn_dim=4),
    ),
    "hubert": ("hubert", lambda folder: _save_waveform(folder, "hubert", "layer")),
    "wavlm": (
        "wavlm",
        lambda folder: _save_waveform(folder, "wavlm", "layer", num_buckets=16, max_bucket_distance=20),
    ),
    "unispeech": ("unispeech", lambda folder: _save_waveform(folder, "unispeech", "layer")),
    "wav2vec2-conformer": (
        "wav2vec2-conformer",
        lambda folder: _save_waveform(folder, "wav2vec2-conformer", "layer", conv_depthwise_kernel_size=7),
    ),
    "unispeech-sat": ("unispeech-sat", lambda folder: _save_waveform(folder, "unispeech-sat", "layer")),
    "data2vec-audio": ("data2vec-audio", lambda folder: _save_waveform(folder, "data2vec-audio", "layer")),
    "wav2vec2-bert": ("wav2vec2-bert", save_tiny_wav2vec2_bert),
    "seamless": ("seamless_m4t_v2", _save_seamless),
    "parakeet": ("parakeet_encoder", save_tiny_parakeet),
    "parakeet-ctc": ("parakeet_ctc", lambda folder: _save_parakeet_whole(folder, "parakeet_ctc")),
    "parakeet-tdt": (
        "parakeet_tdt",
        lambda folder: _save_parakeet_whole(folder, "parakeet_tdt", decoder_hidden_size=8),
    ),
    "parakeet-rnnt": (
        "parakeet_rnnt",
        lambda folder: _save_parakeet_whole(folder, "parakeet_rnnt", decoder_hidden_size=8),
    ),
    "moonshine": ("moonshine", _save_moonshine),
    "granite": ("granite_speech", _save_granite),
    "qwen3-asr": ("qwen3_asr", _save_qwen3_asr),
    "qwen2-audio": ("qwen2_audio", lambda folder: _save_whisper_like(folder, "qwen2_audio", "qwen2")),
    "voxtral": ("voxtral", lambda folder: _save_whisper_like(folder, "voxtral", "llama")),
    "audioflamingo3": ("audioflamingo3", lambda folder: _save_whisper_like(folder, "audioflamingo3", "qwen2")),
    "musicflamingo": (
        "musicflamingo",
        lambda folder: _save_whisper_like(folder, "musicflamingo", "qwen2", "audioflamingo3_encoder"),
    ),
    "glmasr": ("glmasr", _save_glmasr),
}


def reason_of_absence(name: str) -> str:
    """The reason why this environment cannot create a checkpoint of the family. Empty if it can."""
    model_type = SPEECH_ENCODER_SAVERS[name][0]
    if model_type not in CONFIG_MAPPING_NAMES:
        return f"Transformers {transformers.__version__} has no {model_type}"
    # Both need optional packages: torchaudio and, in older versions of Transformers, librosa.
    for family in ("GraniteSpeech", "Parakeet"):
        if name.startswith(family.lower()[:7]):
            try:
                getattr(transformers, f"{family}FeatureExtractor")()
            except ImportError as error:
                return str(error).strip().splitlines()[0]
    return ""


def save_tiny_speech_encoder(name: str, folder: str) -> None:
    torch.manual_seed(0)
    SPEECH_ENCODER_SAVERS[name][1](folder)
