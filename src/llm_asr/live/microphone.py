"""Reads a microphone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .blocks import BlockQueue


# Seconds of audio that may wait while the model is busy. More means that the machine is too slow.
MAX_WAITING_S = 60.0


@dataclass
class AudioInput:
    """
    Audio that arrives.

    Attributes:
        sampling_rate (`int`): Samples per second.
        blocks (`BlockQueue`): The audio as blocks of shape `(num_samples,)`.
    """

    sampling_rate: int
    blocks: BlockQueue


class MicrophoneError(RuntimeError):
    """A microphone cannot be used. The message says why."""


@contextmanager
def open_microphone(device: str | int | None = None) -> Iterator[AudioInput]:
    """
    Record while the context lasts, at the microphone's own sampling rate.

    Args:
        device (`str` or `int`, *optional*): Number or part of the name of a device. Defaults to the system's.

    Raises:
        `ImportError`: If sounddevice or PortAudio is not installed.
        [`MicrophoneError`]: If there is no such device, or it cannot record. The iteration raises it too, if the machine is
            too slow.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise ImportError(
            'The microphone needs a package that is not installed: `pip install "llm-asr[live]"`.'
        ) from error
    except OSError as error:
        raise ImportError(
            f"The microphone needs PortAudio ({error}); on Debian: `apt install libportaudio2`."
        ) from error
    try:
        rate = int(sounddevice.query_devices(device, "input")["default_samplerate"])
        blocks = BlockQueue(round(MAX_WAITING_S * rate))

        def receive(samples: np.ndarray, frames: int, time, status) -> None:
            # PortAudio uses its memory again after the call.
            if not blocks.put(samples[:, 0].copy(), wait=False):
                blocks.close(MicrophoneError(f"The model is more than {MAX_WAITING_S:g} s behind the microphone."))
                raise sounddevice.CallbackStop

        recording = sounddevice.InputStream(
            samplerate=rate, channels=1, dtype="int16", blocksize=rate // 20, device=device, callback=receive
        )
    except (ValueError, sounddevice.PortAudioError) as error:
        raise MicrophoneError(f"The microphone cannot be used: {error}") from error
    with recording:
        yield AudioInput(rate, blocks)


__all__ = ["AudioInput", "MicrophoneError", "open_microphone"]
