"""Runs the server's application, and ends realtime sessions before it stops."""

import socket

import uvicorn

from .app import Server


# Largest message of a client: 15 MiB of audio in base64, as OpenAI accepts.
MAX_MESSAGE_BYTES = 21 * 2**20

# Messages that are received while others wait.
MAX_MESSAGES = 4


class WebServer(uvicorn.Server):
    """
    Serves until SIGTERM or SIGINT. Then it accepts no connections, realtime sessions transcribe what they have heard and end,
    and requests in progress are finished. Both together have `drain_s`.

    Args:
        server ([`Server`]): What is served.
        kwargs: Further arguments of `uvicorn.Config`.
    """

    def __init__(self, server: Server, **kwargs):
        self.server = server
        config = uvicorn.Config(
            server.make_app(),
            timeout_graceful_shutdown=int(server.settings.drain_s),
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_max_queue=MAX_MESSAGES,
            # Audio in base64 hardly compresses, and each connection would need memory for it.
            ws_per_message_deflate=False,
            **kwargs,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        # Uvicorn closes WebSockets at once.
        await self.server.realtime.drain(self.server.settings.drain_s)
        await super().shutdown(sockets)


__all__ = ["WebServer"]
