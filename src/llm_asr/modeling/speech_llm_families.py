"""The registry of published speech language models that can be converted: how each is written in this package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.configuration_utils import PreTrainedConfig


@dataclass(frozen=True)
class SpeechLlmFamily:
    """
    One family of speech language models.

    Attributes:
        projector (`Callable`): From the configuration of a source to fields of [`LlmAsrProjectorConfig`].
        projector_layers (`Mapping[str, str]`): Names in this package's projector, by the names in the source's. A name is a tensor, or
            a module with all its tensors.
        projector_name, audio_tower_name (`str`): Modules of the source.
        request (`str`): Jinja template of the request in the user's message, without a context. Empty if the user's message is the
            recording alone.
        prompt_role (`str`): Role of the message that holds a context: the `"user"`'s, in the place of the request, or `"system"`.
        is_text_first (`bool`): Whether the request comes before the recording.
        is_plain_text (`bool`): Whether messages are strings, in which the audio token stands for the recording.
        has_remote_code (`bool`): Whether the source's classes are in its repository. They are not run: its configuration is read as it
            is, and weights are found by their names.
        answer_start (`str`): Jinja template of what follows the source's prompt.
        encoder_padding (`str`): See [`LlmAsrConfig`].
        processor (`Mapping[str, Any]`): Arguments of [`LlmAsrProcessor`].
        prompt (`str`, *optional*): Jinja template of the whole prompt, if the source has no chat template.
        tokenizer (`Mapping[str, Any]`): Arguments of `AutoTokenizer.from_pretrained`, if the source has no chat template.
    """

    projector: Callable[[PreTrainedConfig], dict[str, Any]]
    projector_layers: Mapping[str, str]
    projector_name: str = "model.multi_modal_projector"
    audio_tower_name: str = "model.audio_tower"
    request: str = ""
    prompt_role: str = "user"
    is_text_first: bool = False
    is_plain_text: bool = False
    has_remote_code: bool = False
    answer_start: str = ""
    encoder_padding: str = "longest"
    processor: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)

    def write_conversation(self, request: str | None, prompt: str | None) -> list[dict]:
        """
        The conversation that asks for a transcription, in the form of Transformers' chat templates.

        Args:
            request (`str`): What the user says beside the recording. It is left out if the family has no `request`, or if `prompt`
                takes its place.
            prompt (`str`, *optional*): Context.
        """
        request = request if self.request else None
        messages = []
        if prompt is not None and self.prompt_role == "system":
            messages.append({"role": "system", "content": [{"type": "text", "text": prompt}]})
        elif prompt is not None:
            request = prompt
        if self.is_plain_text:
            audio_token = self.processor["audio_token"]
            parts = [request, audio_token] if self.is_text_first else [audio_token, request]
            return [*messages, {"role": "user", "content": "\n".join(part for part in parts if part is not None)}]
        # Templates only look whether there is a recording. Nothing is read.
        content = [{"type": "audio", "audio": "recording.wav", "audio_url": "recording.wav", "path": "recording.wav"}]
        if request is not None:
            content.insert(0 if self.is_text_first else 1, {"type": "text", "text": request})
        return [*messages, {"role": "user", "content": content}]


def _linear(config: PreTrainedConfig) -> dict[str, Any]:
    return {"projector_type": "stack", "stack_size": 1, "intermediate_size": None, "mlp_bias": True}


def _two_layers(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "projector_type": "stack",
        "stack_size": 1,
        "intermediate_size": config.text_config.hidden_size,
        "mlp_bias": config.projector_bias,
        "hidden_act": config.projector_hidden_act,
    }


def _stack(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "projector_type": "stack",
        "stack_size": config.audio_config.intermediate_size // config.audio_config.hidden_size,
        "intermediate_size": config.text_config.hidden_size,
        "mlp_bias": False,
        "hidden_act": config.projector_hidden_act,
    }


def _stack_and_drop(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        **_stack(config),
        "intermediate_size": 2 * config.text_config.hidden_size,
        "mlp_bias": True,
        "stack_remainder": "drop",
    }


def _two_encoder_layers(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "projector_type": "stack",
        "stack_size": 1,
        "intermediate_size": config.audio_config.d_model,
        "mlp_bias": True,
        "hidden_act": config.audio_config.activation_function,
    }


def _qformer(config: PreTrainedConfig) -> dict[str, Any]:
    qformer = config.projector_config
    return {
        "projector_type": "qformer",
        "hidden_size": qformer.hidden_size,
        "hidden_act": qformer.hidden_act,
        "intermediate_size": None,
        "qformer_window_size": config.window_size,
        "qformer_num_queries": config.window_size // config.downsample_rate,
        "qformer_num_hidden_layers": qformer.num_hidden_layers,
        "qformer_num_attention_heads": qformer.num_attention_heads,
        "qformer_intermediate_size": qformer.intermediate_size,
        "qformer_cross_attention_frequency": qformer.cross_attention_frequency,
        "qformer_remainder": "zeros",
    }


def _gated_stack(config: Any) -> dict[str, Any]:
    is_gated = config.projector_act == "swiglu"
    return {
        "projector_type": "stack",
        "stack_size": config.stack_factor,
        "intermediate_size": config.hidden_size // 2 if is_gated else config.hidden_size,
        "mlp_bias": False,
        "mlp_gated": is_gated,
        "mlp_norms": ["input", "hidden" if config.projector_ln_mid else "output"],
        "hidden_act": "silu" if is_gated else config.projector_act,
    }


TWO_LAYERS = {"linear_1": "mlp.0", "linear_2": "mlp.2"}
IN_LANGUAGE = "{% if language %} in {{ language }}{% endif %}"

FAMILIES: dict[str, SpeechLlmFamily] = {
    "qwen2_audio": SpeechLlmFamily(
        projector=_linear,
        projector_layers={"linear": "mlp.0"},
        request=f"Transcribe the speech{IN_LANGUAGE}.",
        encoder_padding="features",
        processor={"audio_padding": "max_length"},
    ),
    "audioflamingo3": SpeechLlmFamily(
        projector=_two_layers,
        projector_layers=TWO_LAYERS,
        request=f"Transcribe the input speech{IN_LANGUAGE}.",
        is_text_first=True,
        encoder_padding="features",
        processor={"audio_padding": "max_length"},
    ),
    "glmasr": SpeechLlmFamily(
        projector=_stack_and_drop,
        projector_layers=TWO_LAYERS,
        request=f"Please transcribe this audio into text{IN_LANGUAGE}",
        encoder_padding="features",
        processor={"audio_padding": "max_length"},
    ),
    "voxtral": SpeechLlmFamily(
        projector=_stack,
        projector_layers=TWO_LAYERS,
        processor={"audio_token": "[AUDIO]", "audio_padding": "silence"},
        tokenizer={"mistral_format": False, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        # `mistral_common` writes this request in tokens. A context is a question, as of Voxtral's chat.
        prompt=(
            "<s>[INST][BEGIN_AUDIO]{{ audio_token }}{% if prompt %}{{ prompt }}[/INST]{% else %}[/INST]"
            "{% if language_code %}lang:{{ language_code }}{% endif %}[TRANSCRIBE]{% endif %}"
        ),
    ),
    "qwen3_asr": SpeechLlmFamily(
        projector=_two_encoder_layers,
        projector_layers=TWO_LAYERS,
        prompt_role="system",
        answer_start="{% if language %}language {{ language }}<asr_text>{% endif %}",
        processor={"language_tag": "language {language}<asr_text>"},
    ),
    "granite_speech": SpeechLlmFamily(
        projector=_qformer,
        projector_layers={"query": "query", "qformer": "qformer", "linear": "mlp.0"},
        projector_name="model.projector",
        audio_tower_name="model.encoder",
        request=f"can you transcribe the speech{IN_LANGUAGE} into a written format?",
    ),
    "ultravox": SpeechLlmFamily(
        projector=_gated_stack,
        projector_layers={
            **TWO_LAYERS,
            "ln_pre": "mlp.input_norm",
            "ln_mid": "mlp.hidden_norm",
            "ln_post": "mlp.output_norm",
        },
        request=f"Transcribe{IN_LANGUAGE}",
        is_text_first=True,
        is_plain_text=True,
        has_remote_code=True,
        processor={"audio_token": "<|audio|>", "audio_padding": "mirror"},
    ),
}


# Families that cannot be converted, and why.
REFUSED = {
    "FunASRNano": "its speech encoder (SenseVoice) and its projector are not in Transformers",
    "voxtral_realtime": "it adds the embeddings of the recording to those of the text, frame by frame",
    "granite_speech_plus": "its projector reads the states of several layers of the encoder",
}


def find_speech_llm(source: str, **hub_kwargs) -> SpeechLlmFamily:
    """
    The family of a source. Code in a checkpoint is not run.

    Args:
        source (`str`): Local folder or Hub id.
        hub_kwargs: Where the files are, as in `from_pretrained`.

    Raises:
        `ValueError`: If it cannot be converted.
    """
    stored, _ = PreTrainedConfig.get_config_dict(source, **hub_kwargs)
    model_type = stored.get("model_type")
    if model_type in REFUSED:
        raise ValueError(
            f"`source` {source!r} has model_type {model_type!r}, which cannot be converted: {REFUSED[model_type]}. Choose a model of "
            f"one of the types {sorted(FAMILIES)}."
        )
    if model_type not in FAMILIES:
        raise ValueError(
            f"`source` {source!r} has model_type {model_type!r}, whose projector and prompt have no counterpart here; choose a model "
            f"of one of the types {sorted(FAMILIES)}."
        )
    return FAMILIES[model_type]


__all__ = ["FAMILIES", "REFUSED", "SpeechLlmFamily", "find_speech_llm"]
