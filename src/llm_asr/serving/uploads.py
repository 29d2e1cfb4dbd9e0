"""Receives a form with a recording. Recordings are private, so they stay in memory and are never written to disk."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .errors import ApiError


# Limits of the form fields other than the recording. Only `prompt` can be long.
MAX_FIELD_BYTES = 64 * 2**10
MAX_FIELDS = 32


@dataclass
class Upload:
    """
    Attributes:
        recording (`bytes`): Contents of the uploaded file.
        fields (`list[tuple[str, str]]`): Names and values of the other fields, in the order of the form.
    """

    recording: bytes
    fields: list[tuple[str, str]]


async def read_upload(request: Request, max_bytes: int, timeout_s: float) -> Upload:
    """
    Receive a form.

    Args:
        request (`Request`): A request whose body has not been read.
        max_bytes (`int`): Largest file in bytes.
        timeout_s (`float`): Longest time in seconds for receiving the whole request.

    Raises:
        `ApiError`: If the body is not a form, has no file or several files, is too large, or arrives too slowly.
        `ClientDisconnect`: If the client disconnects.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise ApiError(400, f"The body must be multipart/form-data, got {media_type or 'no content type'!r}.")
    max_body = max_bytes + MAX_FIELDS * MAX_FIELD_BYTES
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_body:
        raise _too_large(max_bytes)
    parser = MultiPartParser(
        request.headers,
        _limited(request.stream(), max_body, max_bytes),
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    # The parser moves larger parts to a file on disk.
    parser.spool_max_size = max_body
    try:
        async with asyncio.timeout(timeout_s):
            form = await parser.parse()
    except TimeoutError as error:
        raise ApiError(408, f"The request was not received within {timeout_s:g} s.") from error
    except MultiPartException as error:
        if "exceeded maximum size" in error.message:
            raise ApiError(
                400,
                f"A field of the form is larger than {MAX_FIELD_BYTES >> 10} KiB; only the file may be larger. If the field "
                "is the recording, send it as the form's `file` with a filename.",
                param="file",
            ) from error
        raise ApiError(400, f"The form cannot be read: {error.message}") from error
    try:
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files and any(name == "file" for name, _ in form.multi_items()):
            raise ApiError(400, "`file` has no filename, so the form sends it as text; add a filename.", param="file")
        if not files or files[0][0] != "file":
            raise ApiError(400, "The recording is missing: send it as the form's `file`.", param="file")
        recording = await files[0][1].read()
    finally:
        await form.close()
    if len(recording) > max_bytes:
        raise _too_large(max_bytes)
    if not recording:
        raise ApiError(400, "`file` is empty.", param="file")
    return Upload(recording, [(name, value) for name, value in form.multi_items() if isinstance(value, str)])


async def _limited(stream: AsyncGenerator[bytes, None], max_body: int, max_bytes: int) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in stream:
        received += len(chunk)
        if received > max_body:
            raise _too_large(max_bytes)
        yield chunk


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413, f"`file` is larger than {max_bytes / 2**20:g} MiB; compress or split it.", "file", "file_too_large"
    )
