"""Extracts the features of waveforms for a speech encoder."""

import inspect

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor

from .log_mel import extract_running_log_mel


# Layouts of features (samples, frames before mel bins, mel bins before frames), and the time dimension of one recording.
FEATURE_LAYOUTS = {"waveform": 0, "time_first": 0, "mel_first": 1}
AUDIO_PADDINGS = ("longest", "max_length", "silence", "mirror")


def extract_features(
    feature_extractor, waveforms: list[np.ndarray], layout: str, padding: str, log_mel_maximum: str = "recording"
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Extract the features of each recording independently of the other recordings in the batch.

    Args:
        feature_extractor ([`SequenceFeatureExtractor`]): The speech encoder's feature extractor.
        waveforms (`list[np.ndarray]`): Recordings, float32, at the sampling rate of the feature extractor.
        layout (`str`): Layout of the feature extractor's output, one of `FEATURE_LAYOUTS`.
        padding (`str`): One of `AUDIO_PADDINGS`; see [`LlmAsrProcessor`].
        log_mel_maximum (`str`, *optional*, defaults to `"recording"`): See [`LlmAsrProcessor`].

    Returns:
        `tuple(torch.Tensor)`: Features in `layout`, float32, and a mask of shape `(num_recordings, num_feature_frames)`,
        int64, 1 for real frames. For waveforms, a frame is a sample.

    Raises:
        `ValueError`: If a recording is shorter than one frame of the feature extractor.
    """
    # Whisper's feature extractor fails in bfloat16, so compute in float32 under autocast too.
    with torch.autocast("cpu", enabled=False):
        if not isinstance(feature_extractor, WhisperFeatureExtractor):
            return _extract_one_by_one(feature_extractor, waveforms, FEATURE_LAYOUTS[layout])
        if padding == "mirror":
            return _extract_mirrored(feature_extractor, waveforms)
        extract = extract_running_log_mel if log_mel_maximum == "running" else _extract_whisper_features
        features, mask = extract(feature_extractor, waveforms)
        longest = int(mask.sum(-1).max())
        if padding == "silence":
            mask[:, : feature_extractor.nb_max_frames] = 1
        if padding != "longest":
            longest = max(longest, feature_extractor.nb_max_frames)
        num_added = max(0, longest - mask.shape[1])
        features, mask = (torch.nn.functional.pad(one[..., :longest], (0, num_added)) for one in (features, mask))
        return features, mask


def _extract_whisper_features(
    feature_extractor: WhisperFeatureExtractor, waveforms: list[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    # The features of the last frames depend on the samples after them. With the same 30 s window for all recordings, features
    # are the same alone and in a batch. The feature extractor's default would cut recordings that are longer than its window.
    features = feature_extractor(
        waveforms,
        sampling_rate=feature_extractor.sampling_rate,
        padding="max_length",
        max_length=max(feature_extractor.n_samples, *map(len, waveforms)),
        truncation=False,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return features["input_features"], features["attention_mask"].long()


def _extract_mirrored(
    feature_extractor: WhisperFeatureExtractor, waveforms: list[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    # Without silence up to the end of a window, the spectra of the last frames mirror the samples at the end of a recording. In a
    # batch the silence of the longest recording would follow, so extract one by one.
    rows = [
        feature_extractor(
            waveform,
            sampling_rate=feature_extractor.sampling_rate,
            padding="longest",
            pad_to_multiple_of=feature_extractor.hop_length,
            truncation=False,
            return_tensors="pt",
        )["input_features"][0].T
        for waveform in waveforms
    ]
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return pad_sequence(rows, batch_first=True).transpose(1, 2), mask.long()


def _extract_one_by_one(
    feature_extractor, waveforms: list[np.ndarray], time_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    # In a batch, the features of a recording's last frames could depend on the padding, so extract them one by one.
    options = {
        "sampling_rate": feature_extractor.sampling_rate,
        "padding": True,
        "return_attention_mask": True,
        "return_tensors": "pt",
    }
    # Some feature extractors do not accept all of these options.
    taken = inspect.signature(feature_extractor.__call__).parameters
    options = {name: value for name, value in options.items() if name in taken}
    rows = []
    for index, waveform in enumerate(waveforms):
        features = feature_extractor(waveform, **options)
        row = features[feature_extractor.model_input_names[0]][0].transpose(0, time_dim)
        if "attention_mask" in features:
            row = row[features["attention_mask"][0].bool()]
        if not len(row) or not row.isfinite().all():
            raise ValueError(
                f"Recording {index}: `audio` has {len(waveform)} samples, less than one frame of the feature extractor; "
                "remove it."
            )
        rows.append(row)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return pad_sequence(rows, batch_first=True).transpose(1, 1 + time_dim), mask.long()
