"""Whether a processor and a model belong together."""


def check_fits_model(processor, config) -> None:
    """
    Raise a `ValueError` if a processor does not fit a model.

    Args:
        processor ([`LlmAsrProcessor`]): The processor.
        config ([`LlmAsrConfig`]): Configuration of the model.
    """
    if processor.audio_token_id != config.audio_token_id:
        raise ValueError(
            f"The audio token of the processor is {processor.audio_token_id} ({processor.audio_token!r}), but `audio_token_id` of the "
            f"model is {config.audio_token_id}; use the processor that was saved with the model."
        )
    frame_rate = processor.sampling_rate / processor.samples_per_frame
    if abs(frame_rate - config.audio_frame_rate) > 1e-3 * frame_rate:
        raise ValueError(
            f"The processor has {processor.sampling_rate} samples per second and {processor.samples_per_frame} per frame, so it has "
            f"{frame_rate:g} frames per second, but `audio_frame_rate` of the model is {config.audio_frame_rate:g}; use the "
            "processor that was saved with the model."
        )
    if config.encoder_padding == "features" and processor.audio_padding != "max_length":
        raise ValueError(
            "The model has `encoder_padding='features'`, so it reads what features hold after the end of a recording, and "
            f"`audio_padding` of the processor is {processor.audio_padding!r}; pass `audio_padding='max_length'` to the processor."
        )
    if config.encoder_attention == "chunked" and processor.log_mel_maximum != "running":
        raise ValueError(
            "The model has `encoder_attention='chunked'`, so its features must not depend on the future, and `log_mel_maximum` "
            f"of the processor is {processor.log_mel_maximum!r}; pass `log_mel_maximum='running'` to the processor."
        )


__all__ = ["check_fits_model"]
