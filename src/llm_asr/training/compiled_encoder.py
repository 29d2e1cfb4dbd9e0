"""`torch.compile` for the speech encoder."""

from transformers.modeling_layers import GradientCheckpointingLayer

from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration


def compile_audio_tower(model: LlmAsrForConditionalGeneration, **kwargs) -> None:
    """
    Compile the speech encoder layer by layer, in place, for all lengths and batch sizes at once.

    All layers share what is compiled for the first. Names of parameters and checkpoints stay as they are.

    Args:
        model ([`LlmAsrForConditionalGeneration`]): With a frozen speech encoder.
        kwargs: Passed on to [`torch.compile`].

    Raises:
        `ValueError`: If the speech encoder is not frozen.
    """
    audio_tower = model.model.audio_tower
    if any(parameter.requires_grad for parameter in audio_tower.parameters()):
        raise ValueError("`model` trains its speech encoder; freeze it (`freeze_audio_tower()`) to compile it.")
    for layer in audio_tower.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True, **kwargs)


__all__ = ["compile_audio_tower"]
