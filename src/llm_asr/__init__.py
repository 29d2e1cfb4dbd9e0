"""Multilingual, LLM-based speech recognition on Hugging Face Transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .modeling.configuration_llm_asr import LlmAsrConfig, LlmAsrProjectorConfig
from .modeling.modeling_llm_asr import (
    LlmAsrForConditionalGeneration,
    LlmAsrModel,
    LlmAsrPreTrainedModel,
)
from .processing.pipeline_llm_asr import LlmAsrPipeline
from .processing.processing_llm_asr import LlmAsrProcessor


__version__ = "0.1.0"

AutoConfig.register("llm_asr", LlmAsrConfig)
AutoConfig.register("llm_asr_projector", LlmAsrProjectorConfig)
AutoModel.register(LlmAsrConfig, LlmAsrModel)
AutoModelForSpeechSeq2Seq.register(LlmAsrConfig, LlmAsrForConditionalGeneration)
AutoProcessor.register(LlmAsrConfig, LlmAsrProcessor)
# In place rather than through `register_pipeline`, which would warn and drop the task's default model.
PIPELINE_REGISTRY.supported_tasks["automatic-speech-recognition"]["impl"] = LlmAsrPipeline


def _upload_modified_files(self, *args, **kwargs):
    # Slow to import, and few need it.
    from .publishing.push import upload_saved

    return upload_saved(self, *args, **kwargs)


# What the code in a checkpoint cannot do, since it ships without the rest of the package.
LlmAsrPreTrainedModel._upload_modified_files = _upload_modified_files
LlmAsrProcessor._upload_modified_files = _upload_modified_files

__all__ = [
    "LlmAsrConfig",
    "LlmAsrForConditionalGeneration",
    "LlmAsrModel",
    "LlmAsrPipeline",
    "LlmAsrPreTrainedModel",
    "LlmAsrProcessor",
    "LlmAsrProjectorConfig",
]
