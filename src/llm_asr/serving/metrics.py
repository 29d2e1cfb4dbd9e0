"""Metrics of the server for Prometheus."""

from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """
    Metrics of one server, in a registry of its own. Metrics of the process and of vLLM are in Prometheus's global
    registry.
    """

    def __init__(self):
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "llm_asr", "registry": self.registry}
        self.requests = Counter("requests", "Requests for a transcription.", ["status"], **own)
        self.request_seconds = Histogram(
            "request_seconds",
            "Seconds from a request to its complete answer.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250),
            **own,
        )
        self.requests_in_progress = Gauge("requests_in_progress", "Requests in progress.", **own)
        self.front_end_queue = Gauge("front_end_queue", "Segments that wait for the front end.", **own)
        self.front_end_batch = Histogram(
            "front_end_batch", "Segments in a batch of the front end.", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        self.audio_seconds = Counter("audio_seconds", "Seconds of audio that were transcribed.", **own)
        self.realtime_streams = Gauge("realtime_streams", "Realtime sessions in progress.", **own)
        self.realtime_lag = Histogram(
            "realtime_lag_seconds",
            "Seconds of audio that waited when a realtime session was heard.",
            buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16),
            **own,
        )
        self.realtime_latency = Histogram(
            "realtime_latency_seconds",
            "Seconds from the arrival of audio to the transcript that rests on it.",
            buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16),
            **own,
        )
        self.new_tokens = Counter("new_tokens", "Tokens that the language model generated.", **own)

    def render(self) -> bytes:
        return generate_latest(self.registry) + generate_latest(REGISTRY)
