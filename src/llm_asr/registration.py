"""Registers the public classes with Transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .modeling.configuration_llm_asr import LlmAsrConfig
from .modeling.configuration_projector import LlmAsrProjectorConfig
from .modeling.modeling_llm_asr import (
    LlmAsrForConditionalGeneration,
    LlmAsrModel,
    LlmAsrPreTrainedModel,
)
from .processing.pipeline_llm_asr import LlmAsrPipeline
from .processing.processing_llm_asr import LlmAsrProcessor


AutoConfig.register("llm_asr", LlmAsrConfig)
AutoConfig.register("llm_asr_projector", LlmAsrProjectorConfig)
AutoModel.register(LlmAsrConfig, LlmAsrModel)
AutoModelForSpeechSeq2Seq.register(LlmAsrConfig, LlmAsrForConditionalGeneration)
AutoProcessor.register(LlmAsrConfig, LlmAsrProcessor)
# Changes the entry in place: `register_pipeline` would warn and remove the task's default model.
PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]["impl"] = LlmAsrPipeline


def _upload_modified_files(self, *args, **kwargs):
    # This import is slow, and few programs need it.
    from .publishing.push import upload_saved

    return upload_saved(self, *args, **kwargs)


# The methods are set here, because the code inside checkpoints ships without `publishing`.
LlmAsrPreTrainedModel._upload_modified_files = _upload_modified_files  # type: ignore[method-assign]
LlmAsrProcessor._upload_modified_files = _upload_modified_files  # type: ignore[method-assign]

__all__ = [
    "LlmAsrConfig",
    "LlmAsrForConditionalGeneration",
    "LlmAsrModel",
    "LlmAsrPipeline",
    "LlmAsrPreTrainedModel",
    "LlmAsrProcessor",
    "LlmAsrProjectorConfig",
]
