"""Errors in the format of OpenAI's API. Its clients turn them into exceptions."""

from starlette.responses import JSONResponse


class ApiError(Exception):
    """
    A request is rejected or has failed.

    Args:
        status (`int`): HTTP status.
        message (`str`): Explanation for the author of the request.
        param (`str`, *optional*): Form field that caused the error.
        code (`str`, *optional*): Machine-readable name of the error.
        headers (`dict[str, str]`, *optional*): Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> dict:
        """`{"error": {"message", "type", "param", "code"}}`."""
        if self.status >= 500:
            kind = "server_error"
        else:
            kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)
