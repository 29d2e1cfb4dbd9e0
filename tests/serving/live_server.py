"""Runs the server on a free port in a thread of the test."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llm_asr.cli import make_parser
from llm_asr.serving.settings import ServerSettings


@contextmanager
def serve(
    checkpoint: str, cache: str, *options: str, on_made: Callable = lambda server: None, **settings
) -> Iterator[str]:
    """
    Yield the address of the server. `options` are options of the command, and `settings` are fields of `ServerSettings`.
    `on_made` is called with the server.
    """
    from llm_asr.commands.serve import make_server
    from llm_asr.serving.web_server import WebServer

    args = make_parser().parse_args(
        ["serve", checkpoint, "--cache-dir", cache, "--served-model-name", "tiny", "whisper-1", *options]
    )
    server = make_server(args, ServerSettings(**settings))
    on_made(server)
    web_server = WebServer(server, port=0, log_level="warning")
    thread = threading.Thread(target=web_server.run)
    thread.start()
    try:
        while not web_server.started:
            assert thread.is_alive(), "The server did not start."
            time.sleep(0.01)
        port = web_server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        web_server.should_exit = True
        thread.join()


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "It did not come true."
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
