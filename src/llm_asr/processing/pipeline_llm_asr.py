"""`pipeline("automatic-speech-recognition")` for LLM-ASR checkpoints."""

from transformers import AutomaticSpeechRecognitionPipeline, AutoProcessor, GenerationConfig

from .audio import load_audio


class LlmAsrPipeline(AutomaticSpeechRecognitionPipeline):
    """
    Transcribes paths, addresses, bytes, waveforms and `{"array" or "raw", "sampling_rate"}` dicts, one or many.

    Importing `llm_asr` makes this the pipeline of the task; for models of other families it returns the stock
    [`AutomaticSpeechRecognitionPipeline`]. It reads files without ffmpeg and converts sampling rates without torchaudio.

    Example:

    ```python
    >>> import llm_asr
    >>> from transformers import pipeline

    >>> transcriber = pipeline("automatic-speech-recognition", model="path/to/checkpoint")
    >>> transcriber("recording.flac", language="es")
    {'text': 'veintiuno de marzo'}
    ```
    """

    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __new__(cls, model, *args, **kwargs):
        if model.config.model_type != "llm_asr":
            return AutomaticSpeechRecognitionPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, model, feature_extractor=None, tokenizer=None, processor=None, **kwargs):
        if processor is None:
            if not model.name_or_path:
                raise ValueError("`processor` must be passed with a model that was not loaded from a checkpoint.")
            # Only a configuration that came from the Hub knows its commit.
            revision = getattr(model.config, "_commit_hash", None)
            processor = AutoProcessor.from_pretrained(model.name_or_path, revision=revision)
        super().__init__(
            model,
            feature_extractor=processor.feature_extractor,
            tokenizer=processor.tokenizer,
            processor=processor,
            **kwargs,
        )

    def _sanitize_parameters(self, language=None, prompt=None, chunk_length_s=None, **kwargs):
        if chunk_length_s:
            raise ValueError(
                "`chunk_length_s` is not supported: split recordings that the speech encoder cannot take."
            )
        _, forward_params, postprocess_params = super()._sanitize_parameters(**kwargs)
        preprocess_params = {
            name: value for name, value in (("language", language), ("prompt", prompt)) if value is not None
        }
        return preprocess_params, forward_params, postprocess_params

    def preprocess(self, inputs, language=None, prompt=None):
        waveform = load_audio(inputs, self.processor.sampling_rate)
        model_inputs = self.processor.apply_transcription_request(
            waveform, language=language, prompt=prompt, audio_padding="max_length"
        )
        yield {"is_last": True, **model_inputs}

    def _forward(self, model_inputs, **generate_kwargs):
        is_last = model_inputs.pop("is_last")
        tokens = self.model.generate(**model_inputs, **self._prepare_generate_kwargs(generate_kwargs))
        return {"is_last": is_last, "tokens": tokens}

    def postprocess(self, model_outputs):
        return {"text": " ".join(self.processor.decode(outputs["tokens"][0]) for outputs in model_outputs)}


__all__ = ["LlmAsrPipeline"]
