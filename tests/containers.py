"""Recordings in containers that libsndfile does not read."""

import io
from fractions import Fraction

import av
import numpy as np


def encode_container(samples: np.ndarray, rate: int, container: str, codec: str) -> bytes:
    """A file with `samples` of shape `(num_samples,)` or `(num_samples, 2)`, as FFmpeg's muxer and encoder write it."""
    samples = np.atleast_2d(samples.T).astype("float32")
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        converter = av.AudioResampler(format=stream.codec_context.format.name)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        pieces = av.AudioFifo()
        pieces.write(frame)
        while piece := pieces.read(1024, partial=True):
            for converted in converter.resample(piece):
                output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return file.getvalue()
