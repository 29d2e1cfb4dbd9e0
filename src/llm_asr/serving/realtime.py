"""The WebSocket `/v1/realtime?intent=transcription`: OpenAI's realtime API for transcription."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket, WebSocketDisconnect

from .engine import EngineDeadError
from .errors import ApiError
from .realtime_events import event_id_of, make_error, make_event, new_id, read_audio, read_event
from .realtime_session import RealtimeSession
from .realtime_settings import EventError, RealtimeSettings, read_beta_session, read_session
from .settings import ServerSettings
from .transcriber import Transcriber


logger = logging.getLogger(__name__)

# Browsers cannot set the header with the key, so OpenAI's clients send it as a subprotocol.
SUBPROTOCOL = "realtime"
KEY_SUBPROTOCOL = "openai-insecure-api-key."

# Codes of RFC 6455.
CLOSED_NORMALLY, CLOSED_GOING_AWAY, CLOSED_BY_ERROR = 1000, 1001, 1011


class Realtime:
    """
    Answers connections.

    Args:
        transcriber ([`Transcriber`]): The server's.
        settings ([`ServerSettings`]): The server's.
        model_names (`tuple[str, ...]`): Names that clients may use for the model.
        authorize (`Callable[[HTTPConnection, str | None], None]`): Raises an [`ApiError`] without the key. Its second argument is
            a key from elsewhere than the header.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        settings: ServerSettings,
        model_names: tuple[str, ...],
        authorize: Callable[[HTTPConnection, str | None], None],
    ):
        self.transcriber = transcriber
        self.settings = settings
        self.model_names = model_names
        self.authorize = authorize
        self._sessions: dict[RealtimeSession, asyncio.Task] = {}
        self._is_draining = False
        transcriber.metrics.realtime_streams.set_function(lambda: len(self._sessions))

    async def drain(self, seconds: float) -> None:
        """End all sessions with a final transcript, and wait up to `seconds` for them. New ones are refused."""
        self._is_draining = True
        for session in self._sessions:
            session.end()
        if self._sessions:
            await asyncio.wait(self._sessions.values(), timeout=seconds)

    async def answer(self, websocket: WebSocket) -> None:
        """Serve one connection to its end."""
        offered = websocket.scope["subprotocols"]
        try:
            options = self._check(websocket, offered)
        except ApiError as error:
            await websocket.send_denial_response(error.response())
            return
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        is_beta = websocket.headers.get("openai-beta") == "realtime=v1" or "openai-beta.realtime-v1" in offered

        async def send(event: dict) -> None:
            # A client that takes no events must not keep its session.
            async with asyncio.timeout(self.settings.stream_idle_s):
                await websocket.send_json(event)

        session = RealtimeSession(self.transcriber, self.settings, options, send, is_beta)
        task = asyncio.current_task()
        assert task is not None
        self._sessions[session] = task
        code = CLOSED_BY_ERROR
        try:
            code = await self._serve(websocket, session, send)
        except (WebSocketDisconnect, TimeoutError):
            return
        except Exception as error:
            if not isinstance(error, EngineDeadError):
                logger.exception("A realtime session failed.")
            message = str(error) if isinstance(error, EngineDeadError) else "The server failed; its log says why."
            with suppress(WebSocketDisconnect, TimeoutError):
                await send(make_error(message, None, "internal_error", is_server=True))
        finally:
            del self._sessions[session]
        # The client may have left.
        with suppress(RuntimeError, WebSocketDisconnect):
            await websocket.close(code)

    def _check(self, websocket: WebSocket, offered: list[str]) -> RealtimeSettings:
        """
        Return the settings of a new session.

        Raises:
            `ApiError`: If the connection is refused.
        """
        origin = websocket.headers.get("origin")
        # Browsers let any page connect, so the server must check which one it is.
        is_allowed = origin is None or bool({"*", origin} & set(self.settings.cors_origins))
        if not is_allowed and urlsplit(origin).netloc != websocket.headers.get("host"):
            raise ApiError(403, f"Pages of {origin} may not use this server; see `--cors-origins`.", "Origin")
        keys = [name.removeprefix(KEY_SUBPROTOCOL) for name in offered if name.startswith(KEY_SUBPROTOCOL)]
        self.authorize(websocket, keys[0] if keys else None)
        query = dict(websocket.query_params)
        unknown = sorted(set(query) - {"intent", "model"})
        if unknown:
            raise ApiError(400, f"`{unknown[0]}` is not supported; supported are intent, model.", unknown[0])
        if query.get("intent") != "transcription":
            raise ApiError(400, "`intent` must be 'transcription': the server only transcribes.", "intent")
        model = query.get("model", self.model_names[0])
        if model not in self.model_names:
            raise ApiError(
                404,
                f"The model {model!r} does not exist; this server has {', '.join(self.model_names)}.",
                "model",
                "model_not_found",
            )
        if self._is_draining:
            raise ApiError(503, "The server is stopping.", code="server_stopping")
        if len(self._sessions) >= self.settings.max_streams:
            raise ApiError(
                429,
                f"{len(self._sessions)} realtime sessions are open already; try again later.",
                code="rate_limit_exceeded",
                headers={"Retry-After": "10"},
            )
        return RealtimeSettings(model)

    async def _serve(self, websocket: WebSocket, session: RealtimeSession, send) -> int:
        """
        Run the session, and return the code that closes the connection.

        Raises:
            `WebSocketDisconnect`, `TimeoutError`: If the client has left or takes no events.
            `EngineDeadError`: If the engine has stopped.
        """
        options = session.options
        ids = {"id": new_id("sess"), "object": "realtime.transcription_session"}
        if session.is_beta:
            first = make_event("transcription_session.created", session={**options.as_beta_session(), **ids})
        else:
            first = make_event("session.created", session={**options.as_session(), **ids})
        await send(first)
        worker = asyncio.create_task(session.run())
        receiver = asyncio.create_task(self._receive(websocket, session, send))
        try:
            await asyncio.wait({worker, receiver}, return_when=asyncio.FIRST_COMPLETED)
            if receiver.done():
                # An error of the receiver ends the session at once; a limit ends it with its last transcript.
                receiver.result()
            await worker
        finally:
            for task in (worker, receiver):
                task.cancel()
            await asyncio.gather(worker, receiver, return_exceptions=True)
        return CLOSED_GOING_AWAY if self._is_draining else CLOSED_NORMALLY

    async def _receive(self, websocket: WebSocket, session: RealtimeSession, send) -> None:
        """Read the client's events until a limit ends the session."""
        seconds = 0.0
        while True:
            try:
                async with asyncio.timeout(self.settings.stream_idle_s):
                    message = await websocket.receive()
            except TimeoutError:
                limit = f"The client has sent nothing for {self.settings.stream_idle_s:g} s."
                await send(make_error(limit, None, "idle_timeout"))
                break
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"])
            text = message.get("text")
            try:
                if text is None:
                    raise EventError("Events must be text, got bytes.", code="invalid_json")
                seconds += await self._apply(text, session)
            except EventError as error:
                await send(make_error(error.message, error.param, error.code, event_id_of(text or "")))
            if seconds > self.settings.max_stream_s:
                limit = f"The session has reached the limit of {self.settings.max_stream_s:g} s of audio."
                await send(make_error(limit, None, "session_expired"))
                break
        session.end()

    async def _apply(self, text: str, session: RealtimeSession) -> float:
        """
        Pass an event of the client to the session, and return the seconds of audio that it adds.

        Raises:
            [`EventError`]: If the event is refused.
        """
        event = read_event(text)
        kind, cause = event["type"], event.get("event_id")
        if kind == "input_audio_buffer.append":
            samples = read_audio(event["audio"])
            await session.append(samples)
            return len(samples) / session.options.rate
        if kind == "input_audio_buffer.commit":
            session.commit(cause)
        elif kind == "input_audio_buffer.clear":
            session.clear(cause)
        else:
            read = read_session if kind == "session.update" else read_beta_session
            options = read(event["session"], session.options, self.model_names)
            session.update(options, f"{kind}d", cause)
        return 0.0


__all__ = ["Realtime"]
