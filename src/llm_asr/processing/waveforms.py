"""Converts samples to the form that this package uses: mono, float32, full scale at ±1."""

import numpy as np


# Transformers does not require the imports of a `try` block, so a checkpoint's code can transcribe waveforms without soxr.
try:
    import soxr
except ImportError:
    soxr = None

# Largest number of channels (seventh-order ambisonics has 64). A longer first axis must be time.
MAX_CHANNELS = 64

# Floating point samples may slightly exceed full scale, for instance after resampling. Samples that exceed it by more than
# 20 dB were never divided by their full scale.
MAX_PEAK = 10.0

FULL_SCALE = {"int8": 2**7, "int16": 2**15, "int32": 2**31, "uint8": 2**7}


def check_waveform(samples: np.ndarray, name: str = "`audio`") -> np.ndarray:
    """
    Check the samples of a recording and convert them to a mono waveform.

    Args:
        samples (`np.ndarray` of shape `(num_samples,)` or `(num_channels, num_samples)`): Floating point samples with full
            scale at ±1, or integer samples of 8, 16 or 32 bits with the full scale of their dtype. Channels are averaged.
        name (`str`, *optional*): Name of the recording in errors.

    Returns:
        `np.ndarray` of shape `(num_samples,)`, float32.

    Raises:
        `ValueError`: If the shape or the dtype is invalid, or if samples are missing, not finite, or far above full scale.
    """
    if samples.ndim == 2 and samples.shape[0] > MAX_CHANNELS and samples.shape[0] > samples.shape[1]:
        raise ValueError(
            f"{name} must have shape (num_samples,) or (num_channels, num_samples), got {tuple(samples.shape)}; transpose "
            "it."
        )
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"{name} must have shape (num_samples,) or (num_channels, num_samples), got {tuple(samples.shape)}."
        )
    if samples.size == 0:
        raise ValueError(f"{name} is empty; remove it.")
    waveform = _as_float(samples, name)
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=0)
    # Finite float64 numbers may become infinite in float32; the check below reports them.
    with np.errstate(over="ignore"):
        waveform = waveform.astype(np.float32, copy=False)
    peak = max(waveform.max(), -waveform.min())
    if not np.isfinite(peak):
        raise ValueError(f"{name} holds NaN or infinite samples; repair or remove it.")
    if peak > MAX_PEAK:
        raise ValueError(
            f"{name} holds samples up to {peak:.6g}, but full scale is 1; divide them by their full scale (32768 for samples "
            "of 16 bits)."
        )
    return waveform


def resample(waveform: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Convert a waveform of shape `(num_samples,)` between sampling rates."""
    if from_rate == to_rate:
        return waveform
    _check_soxr()
    return soxr.resample(waveform, from_rate, to_rate)


def open_resampler(from_rate: int, to_rate: int) -> "soxr.ResampleStream":
    """Open a converter between sampling rates, which takes a mono float32 waveform block by block."""
    _check_soxr()
    return soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")


def _check_soxr() -> None:
    if soxr is None:
        raise ImportError(
            "Audio at another sampling rate than the model's needs soxr; install it: `pip install soxr`."
        )


def _as_float(samples: np.ndarray, name: str) -> np.ndarray:
    if np.issubdtype(samples.dtype, np.floating):
        return samples
    full_scale = FULL_SCALE.get(samples.dtype.name)
    if full_scale is None:
        raise ValueError(
            f"{name} holds samples of {samples.dtype}, whose full scale is unknown; pass them in their original dtype (int16 "
            "or int32), or divide them by their full scale."
        )
    offset = full_scale if samples.dtype.kind == "u" else 0
    return (samples.astype(np.float64) - offset) / full_scale


__all__ = ["MAX_CHANNELS", "check_waveform", "resample"]
