"""`torch.compile` for the speech encoder."""

from transformers.modeling_layers import GradientCheckpointingLayer

from ..modeling.modeling_llm_asr import LlmAsrForConditionalGeneration


def compile_audio_tower(model: LlmAsrForConditionalGeneration, **kwargs) -> None:
    """
    Compile the layers of the speech encoder in place, with dynamic lengths and batch sizes.

    All layers share the code that is compiled for the first one. Names of parameters and checkpoints do not change.

    Args:
        model ([`LlmAsrForConditionalGeneration`]): A model with a frozen speech encoder.
        kwargs: Further arguments of [`torch.compile`].

    Raises:
        `ValueError`: If the speech encoder is not frozen, or its family cannot be compiled layer by layer.
    """
    audio_tower = model.model.audio_tower
    if any(parameter.requires_grad for parameter in audio_tower.parameters()):
        raise ValueError("`model` trains its speech encoder; freeze it (`freeze_audio_tower()`) to compile it.")
    layers = [layer for layer in audio_tower.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"The layers of {type(audio_tower).__name__} cannot be compiled one by one; leave `compile_audio` off."
        )
    for layer in layers:
        layer.compile(dynamic=True, **kwargs)


__all__ = ["compile_audio_tower"]
