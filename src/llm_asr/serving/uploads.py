"""A form with a recording, held in memory: what people say never reaches a disk."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .errors import ApiError


# Of the fields beside the recording; a context (`prompt`) is the only one that may be long.
MAX_FIELD_BYTES = 64 * 2**10
MAX_FIELDS = 32


@dataclass
class Upload:
    """
    Attributes:
        recording (`bytes`): Contents of the file.
        fields (`list[tuple[str, str]]`): Names and values of the other fields, in order.
    """

    recording: bytes
    fields: list[tuple[str, str]]


async def read_upload(request: Request, max_bytes: int, timeout_s: float) -> Upload:
    """
    Receive a form.

    Args:
        request (`Request`): Its body must not have been read.
        max_bytes (`int`): Largest file.
        timeout_s (`float`): Seconds in which all of it must have come.

    Raises:
        `ApiError`: If it is no form, has no file or several, or is too large or too slow.
        `ClientDisconnect`: If the client has left.
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
    # What is larger than this would be moved to a file.
    parser.spool_max_size = max_body
    try:
        async with asyncio.timeout(timeout_s):
            form = await parser.parse()
    except TimeoutError as error:
        raise ApiError(408, f"The request was not received within {timeout_s:g} s.") from error
    except MultiPartException as error:
        raise ApiError(400, f"The form cannot be read: {error.message}") from error
    try:
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
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


async def _limited(stream: AsyncIterator[bytes], max_body: int, max_bytes: int) -> AsyncIterator[bytes]:
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
