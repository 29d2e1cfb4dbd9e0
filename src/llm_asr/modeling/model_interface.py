"""Base classes of the mixins, from which type checkers know the model that a mixin is a part of."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers.generation import GenerationConfig
    from transformers.modeling_utils import PreTrainedModel

    from .configuration_llm_asr import LlmAsrConfig
    from .draft_head import DraftHead
    from .outputs_llm_asr import LlmAsrAudioOutput

    class ModelInterface(PreTrainedModel):
        """What mixins use of [`LlmAsrPreTrainedModel`]."""

        config: LlmAsrConfig
        config_class: type[LlmAsrConfig]
        # mypy does not bind `PreTrainedModel.to`, because Transformers decorates it.
        to = nn.Module.to  # type: ignore[assignment]

        @classmethod
        def headed_class(cls) -> type["HeadedModelInterface"]: ...

    class HeadedModelInterface(ModelInterface):
        """What mixins use of [`LlmAsrForConditionalGeneration`], and of one another."""

        model: Any
        lm_head: nn.Linear
        draft_head: DraftHead | None
        language_model_head: Any
        generation_config: GenerationConfig

        def get_audio_features(self, *args: Any, **kwargs: Any) -> LlmAsrAudioOutput: ...
        def freeze_audio_tower(self) -> None: ...
        def freeze_language_model(self) -> None: ...

        # `GenerationMixin` asks for attributes, and `PreTrainedModel` has properties.
        device: torch.device
        dtype: torch.dtype

        # `GenerationMixin` asks for a model whose further attributes may be of any type.
        def __getattr__(self, name: str) -> Any: ...

else:
    ModelInterface = HeadedModelInterface = object


__all__ = ["HeadedModelInterface", "ModelInterface"]
