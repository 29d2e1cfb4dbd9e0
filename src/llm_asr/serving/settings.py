"""What an operator of the server may set."""

from dataclasses import dataclass, field

from ..processing.voice_activity import VOICE_ACTIVITIES


ENGINES = ("vllm", "transformers")


@dataclass
class ServerSettings:
    """
    Limits and sizes of the server.

    Args:
        max_requests (`int`, *optional*, defaults to 64): Requests that are received, waiting or being transcribed at a time;
            others are answered with 429.
        max_upload_mb (`float`, *optional*, defaults to 25.0): Largest file, in units of 2^20 bytes.
        max_recording_s (`float`, *optional*, defaults to 14400.0): Longest recording, in seconds.
        upload_timeout_s (`float`, *optional*, defaults to 60.0): Seconds in which a client must have sent its request.
        batch_size (`int`, *optional*, defaults to 16): Segments that go through the front end together.
        batch_seconds (`float`, *optional*, defaults to 240.0): Seconds of audio that do, padding included.
        batch_wait_ms (`float`, *optional*, defaults to 5.0): Milliseconds that a segment waits for others.
        segments_per_request (`int`, *optional*, defaults to 16): Segments of one recording that are worked on at a time, so
            that an hour of speech neither fills the memory nor keeps others waiting.
        vad (`str`, *optional*, defaults to `"energy"`): What tells speech from silence; see [`split_at_silences`].
        drain_s (`float`, *optional*, defaults to 120.0): Seconds that requests have to be finished in after SIGTERM.
        api_key (`str`, *optional*): What clients must send as `Authorization: Bearer`; anyone may ask without one.

    Raises:
        `ValueError`: If one is impossible.
    """

    max_requests: int = 64
    max_upload_mb: float = 25.0
    max_recording_s: float = 4 * 3600.0
    upload_timeout_s: float = 60.0
    batch_size: int = 16
    batch_seconds: float = 240.0
    batch_wait_ms: float = 5.0
    segments_per_request: int = 16
    vad: str = "energy"
    drain_s: float = 120.0
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self):
        for name in ("max_requests", "batch_size", "segments_per_request"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("max_upload_mb", "max_recording_s", "upload_timeout_s", "batch_seconds", "drain_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not self.batch_wait_ms >= 0:
            raise ValueError(f"`batch_wait_ms` must not be negative, got {self.batch_wait_ms}.")
        if self.vad not in VOICE_ACTIVITIES:
            raise ValueError(f"`vad` must be one of {sorted(VOICE_ACTIVITIES)}, got {self.vad!r}.")
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("`api_key` is empty; leave it out if anyone may ask.")

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 2**20)
