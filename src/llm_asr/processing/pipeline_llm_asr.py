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
    >>> transcriber("recording.flac", return_timestamps="word")["chunks"][0]  # with CIF
    {'text': 'veintiuno', 'timestamp': (0.2, 0.86)}
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

    def _sanitize_parameters(self, language=None, prompt=None, return_timestamps=None, **kwargs):
        for name in ("chunk_length_s", "stride_length_s", "decoder_kwargs"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(f"`{name}` is not supported: a recording is transcribed as a whole; split long ones.")
        options = {**kwargs.get("generate_kwargs", {}), **kwargs}
        if "generation_config" in options:
            options = {**options["generation_config"].to_diff_dict(), **options}
        if options.get("num_return_sequences", 1) != 1:
            raise ValueError("`num_return_sequences` must be 1: a recording has one transcript.")
        if return_timestamps not in (None, False, True, "word"):
            raise ValueError(f"`return_timestamps` must be 'word', True or False, got {return_timestamps!r}.")
        if return_timestamps and not self.model.config.projector_config.uses_cif:
            raise ValueError(
                "`return_timestamps` needs a projector with CIF ('cif' or 'moe_cif'), and this model's is "
                f"{self.model.config.projector_config.projector_type!r}."
            )
        _, forward_params, postprocess_params = super()._sanitize_parameters(**kwargs)
        preprocess_params = {
            name: value for name, value in (("language", language), ("prompt", prompt)) if value is not None
        }
        if return_timestamps is not None:
            postprocess_params["return_timestamps"] = return_timestamps
        return preprocess_params, forward_params, postprocess_params

    def preprocess(self, inputs, language=None, prompt=None):
        waveform = load_audio(inputs, self.processor.sampling_rate)
        model_inputs = self.processor.apply_transcription_request(
            waveform, language=language, prompt=prompt, audio_padding="max_length"
        )
        yield {"is_last": True, **model_inputs}

    def _forward(self, model_inputs, **generate_kwargs):
        is_last = model_inputs.pop("is_last")
        outputs = self.model.generate(
            **model_inputs, **self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=True)
        )
        tokens_and_weights = {"tokens": outputs.sequences}
        if outputs.alphas is not None:
            tokens_and_weights["alphas"] = outputs.alphas.float()
        return {"is_last": is_last, **tokens_and_weights}

    def postprocess(self, model_outputs, return_timestamps=False):
        (outputs,) = model_outputs
        if not return_timestamps:
            return {"text": self.processor.decode(outputs["tokens"][0])}
        decoded = self.processor.decode(
            outputs["tokens"][0],
            output_offsets=return_timestamps,
            alphas=outputs["alphas"][0],
            frame_period=self.model.config.projector_frame_period,
        )
        return {"text": decoded["text"], "chunks": decoded["offsets"]}


__all__ = ["LlmAsrPipeline"]
