"""Settings of the server."""

import math
from dataclasses import dataclass, field

from ..processing.voice_activity import VOICE_ACTIVITIES


ENGINES = ("vllm", "transformers")


@dataclass
class ServerSettings:
    """
    Limits and sizes of the server.

    Args:
        max_requests (`int`, *optional*, defaults to 64): Largest number of requests in progress, including those that are
            still being received. The server answers further requests with 429.
        max_upload_mb (`float`, *optional*, defaults to 25.0): Largest file, in units of 2^20 bytes.
        max_recording_s (`float`, *optional*, defaults to 14400.0): Longest recording, in seconds.
        upload_timeout_s (`float`, *optional*, defaults to 60.0): Longest time in seconds that a client may take to send its
            request.
        batch_size (`int`, *optional*, defaults to 16): Largest number of segments in a batch of the front end.
        batch_seconds (`float`, *optional*, defaults to 240.0): Largest number of seconds of audio in a batch of the front
            end, padding included.
        batch_wait_ms (`float`, *optional*, defaults to 5.0): Longest time in milliseconds that a segment waits for others.
        segments_per_request (`int`, *optional*, defaults to 16): Largest number of segments of one recording in progress.
            The limit keeps a long recording from filling the memory and from delaying other requests.
        max_streams (`int`, *optional*, defaults to 32): Largest number of realtime sessions. Further ones are refused with 429.
        max_stream_s (`float`, *optional*, defaults to 14400.0): Longest audio of a realtime session, in seconds.
        stream_idle_s (`float`, *optional*, defaults to 60.0): Seconds without an event of the client, or without the client
            taking an event, after which a realtime session ends.
        vad (`str`, *optional*, defaults to `"energy"`): Voice activity detection; see [`split_at_silences`].
        drain_s (`float`, *optional*, defaults to 120.0): Seconds that requests in progress have after SIGTERM.
        cors_origins (`tuple[str, ...]`, *optional*, defaults to `()`): Origins of web pages whose scripts may use the
            server, such as `"https://example.org"`; `"*"` allows all.
        api_key (`str`, *optional*): Key that clients must send as `Authorization: Bearer`. Without a key, anyone may use
            the server.

    Raises:
        `ValueError`: If a setting has an invalid value.
    """

    max_requests: int = 64
    max_upload_mb: float = 25.0
    max_recording_s: float = 4 * 3600.0
    upload_timeout_s: float = 60.0
    batch_size: int = 16
    batch_seconds: float = 240.0
    batch_wait_ms: float = 5.0
    segments_per_request: int = 16
    max_streams: int = 32
    max_stream_s: float = 4 * 3600.0
    stream_idle_s: float = 60.0
    vad: str = "energy"
    drain_s: float = 120.0
    cors_origins: tuple[str, ...] = ()
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self):
        for name in ("max_requests", "batch_size", "segments_per_request", "max_streams"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        positive = ("max_upload_mb", "max_recording_s", "upload_timeout_s", "batch_seconds", "drain_s")
        for name in (*positive, "max_stream_s", "stream_idle_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, got {getattr(self, name)}.")
        if not 0 <= self.batch_wait_ms < math.inf:
            raise ValueError(f"`batch_wait_ms` must not be negative, and must be finite, got {self.batch_wait_ms}.")
        if self.vad not in VOICE_ACTIVITIES:
            raise ValueError(f"`vad` must be one of {sorted(VOICE_ACTIVITIES)}, got {self.vad!r}.")
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("`api_key` is empty; leave it out if anyone may use the server.")

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 2**20)
