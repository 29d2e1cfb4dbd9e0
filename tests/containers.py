"""Encodes recordings in containers that libsndfile does not read."""

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def encode_container(
    samples: np.ndarray,
    rate: int,
    container: str,
    codec: str,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    """Encode `samples` of shape `(num_samples,)` or `(num_samples, 2)` with a muxer and an encoder of FFmpeg."""
    with tempfile.TemporaryDirectory() as folder:
        # FFmpeg opens some files again to move their index to the start, so it needs a path.
        path = Path(folder) / "recording"
        _write(path, samples, rate, container, codec, options or {}, codec_options or {})
        return path.read_bytes()


def _write(path, samples, rate, container, codec, options, codec_options) -> None:
    samples = np.atleast_2d(samples.T).astype("float32")
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout, options=codec_options)
        converter = av.AudioResampler(format=stream.codec_context.format.name)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        pieces = av.AudioFifo()
        pieces.write(frame)
        while piece := pieces.read(1024, partial=True):
            for converted in converter.resample(piece):
                output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
