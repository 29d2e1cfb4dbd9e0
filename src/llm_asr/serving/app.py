"""The HTTP server: OpenAI's transcription API over a [`Transcriber`]."""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send

from .admission import Admission
from .engine import Decoding, EngineDeadError
from .errors import ApiError
from .formats import delta_event, done_event, error_event, make_response
from .parameters import TranscriptionParameters, read_parameters
from .realtime import Realtime
from .settings import ServerSettings
from .transcriber import PromptTooLongError, Transcriber, UnusableRecordingError
from .transcriber import Request as Job
from .uploads import read_upload


logger = logging.getLogger(__name__)


class Server:
    """
    Answers `POST /v1/audio/transcriptions` and `/v1/audio/translations`, the WebSocket `/v1/realtime`, `GET /v1/models`, `/health`
    and `/metrics`.

    Args:
        transcriber ([`Transcriber`])
        settings ([`ServerSettings`])
        model_names (`tuple[str, ...]`): Names that clients may use for the model.
        default_temperature (`float`): Temperature of requests that do not set one.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        settings: ServerSettings,
        model_names: tuple[str, ...],
        default_temperature: float = 0.0,
    ):
        self.transcriber = transcriber
        self.settings = settings
        self.model_names = model_names
        self.default_temperature = default_temperature
        self.admission = Admission(settings.max_requests)
        self.metrics = transcriber.metrics
        self.metrics.requests_in_progress.set_function(lambda: self.admission.num_requests)
        self.metrics.front_end_queue.set_function(lambda: transcriber.front_end.batcher.num_queued)
        self.realtime = Realtime(transcriber, settings, model_names, self.authorize)
        self.started = int(time.time())

    def make_app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/audio/transcriptions", _Endpoint(self, is_translation=False), methods=["POST"]),
                Route("/v1/audio/translations", _Endpoint(self, is_translation=True), methods=["POST"]),
                WebSocketRoute("/v1/realtime", self.realtime.answer),
                Route("/v1/models", self.list_models, methods=["GET"]),
                Route("/v1/models/{name:path}", self.show_model, methods=["GET"]),
                Route("/health", self.show_health, methods=["GET"]),
                Route("/metrics", self.show_metrics, methods=["GET"]),
            ],
            exception_handlers=dict.fromkeys((ApiError, HTTPException, Exception), _answer_error),
            middleware=[
                Middleware(
                    CORSMiddleware,
                    allow_origins=self.settings.cors_origins,
                    allow_methods=["GET", "POST"],
                    allow_headers=["Authorization", "Content-Type"],
                )
            ]
            if self.settings.cors_origins
            else [],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.transcriber.start()
        try:
            yield
        finally:
            await self.transcriber.stop()

    def authorize(self, request: HTTPConnection, given_key: str | None = None) -> None:
        """
        Args:
            request (`HTTPConnection`): The request.
            given_key (`str`, *optional*): A key that the client sends elsewhere than in its header.

        Raises:
            `ApiError`: 401, if the server has a key and the request does not send it.
        """
        if self.settings.api_key is None:
            return
        header = request.headers.get("authorization", "" if given_key is None else f"Bearer {given_key}")
        scheme, _, key = header.partition(" ")
        # The comparison takes constant time, so that its duration reveals nothing about the key.
        is_key = hmac.compare_digest(key.strip().encode(), self.settings.api_key.encode())
        if scheme.lower() != "bearer" or not is_key:
            raise ApiError(
                401,
                "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def list_models(self, request: Request) -> Response:
        self.authorize(request)
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.model_names]})

    async def show_model(self, request: Request) -> Response:
        self.authorize(request)
        name = request.path_params["name"]
        if name not in self.model_names:
            raise ApiError(404, f"The model {name!r} does not exist.", "model", "model_not_found")
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict:
        return {"id": name, "object": "model", "created": self.started, "owned_by": "llm-asr"}

    async def show_health(self, request: Request) -> Response:
        try:
            await self.transcriber.check_health()
        except EngineDeadError as error:
            raise ApiError(503, str(error), code="engine_dead") from error
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def transcribe(self, request: Request, send: Send, is_translation: bool) -> None:
        """
        Transcribe or translate the uploaded recording and send the response.

        Raises:
            `ApiError`: If the request fails before the response has started.
        """
        self.authorize(request)
        with self.admission.enter():
            upload = await read_upload(request, self.settings.max_upload_bytes, self.settings.upload_timeout_s)
            projector = self.transcriber.front_end.model.config.projector_config
            parameters = read_parameters(
                upload.fields, self.model_names, self.transcriber.processor, projector.uses_cif, is_translation
            )
            temperature = self.default_temperature if parameters.temperature is None else parameters.temperature
            is_verbose = parameters.response_format == "verbose_json"
            decoding = Decoding(temperature, output_confidence=is_verbose)
            job = Job(
                upload.recording,
                parameters.language,
                parameters.prompt,
                decoding,
                parameters.keywords,
                parameters.target_language,
            )
            answer = self._stream if parameters.stream else self._answer
            await _while_connected(answer(job, parameters, send), request.receive)

    async def _run(self, job: Job, on_text: Callable[[str], None] | None = None):
        try:
            transcript = await self.transcriber.transcribe(job, on_text)
        except UnusableRecordingError as error:
            raise ApiError(400, str(error), "file", "invalid_audio") from error
        except PromptTooLongError as error:
            raise ApiError(400, str(error), "prompt") from error
        except EngineDeadError as error:
            raise ApiError(503, str(error), code="engine_dead") from error
        self.metrics.audio_seconds.inc(transcript.duration)
        return transcript

    async def _answer(self, job: Job, parameters: TranscriptionParameters, send: Send) -> None:
        transcript = await self._run(job)
        response = make_response(self.transcriber, transcript, parameters, job.decoding.temperature)
        await _send(response, send)

    async def _stream(self, job: Job, parameters: TranscriptionParameters, send: Send) -> None:
        """
        Send the text as server-sent events.

        The response starts with the first text. An earlier error is answered with its own HTTP status. A later error is
        sent as an event.
        """
        parts: asyncio.Queue[str | None] = asyncio.Queue()
        run = asyncio.create_task(self._run(job, parts.put_nowait))
        run.add_done_callback(lambda _: parts.put_nowait(None))
        try:
            text = await parts.get()
            if text is None and (failure := run.exception()) is not None:
                raise failure
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while text is not None:
                await _send_event(delta_event(text), send)
                text = await parts.get()
            try:
                transcript = await run
                result = self.transcriber.join(transcript, parameters.language, return_timestamps=False)
                last = done_event(result["text"], transcript)
            except ApiError as error:
                last = error_event(error.body)
            except Exception:
                logger.exception("A transcription failed after its response had started.")
                last = error_event(_internal_error().body)
            await _send_event(last, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            run.cancel()


class _Endpoint:
    """`POST` of a recording as an ASGI application, which can detect that the client disconnects."""

    def __init__(self, server: Server, is_translation: bool):
        self.server = server
        self.is_translation = is_translation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics, status = self.server.metrics, 499

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        request = Request(scope, receive)
        with metrics.request_seconds.time():
            try:
                await self.server.transcribe(request, send_and_note, self.is_translation)
            except ClientDisconnect:
                pass
            except ApiError as error:
                await _send(error.response(), send_and_note)
            except Exception:
                logger.exception("A transcription failed.")
                await _send(_internal_error().response(), send_and_note)
            finally:
                metrics.requests.labels(status).inc()


async def _while_connected(work: Coroutine, receive: Receive) -> None:
    """
    Await `work`, and cancel it if the client disconnects.

    Raises:
        `ClientDisconnect`: If the client disconnects first.
    """

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    worker, watcher = asyncio.create_task(work), asyncio.create_task(wait_for_disconnect())
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientDisconnect
        await worker
    finally:
        for task in (worker, watcher):
            task.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _send(response: Response, send: Send) -> None:
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


async def _send_event(event: bytes, send: Send) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})


def _internal_error() -> ApiError:
    # The details go to the log only: they may contain file names or parts of a transcript.
    return ApiError(500, "The server failed to answer; its log says why.", code="internal_error")


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return error.response()
    if isinstance(error, HTTPException):
        response = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}").response()
        response.headers.update(error.headers or {})
        return response
    return _internal_error().response()
