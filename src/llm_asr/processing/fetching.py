"""Downloads recordings from `http(s)` addresses."""

# Longest time in seconds for a connection, and for each part of the response.
TIMEOUT_S = 30.0

MAX_BYTES = 2**30


def fetch_audio(address: str) -> bytes:
    """
    Download a file.

    Args:
        address (`str`): Address with `http://` or `https://`. Characters that are not allowed in addresses are escaped.

    Returns:
        `bytes`: Contents of the file.

    Raises:
        `ValueError`: If the file cannot be downloaded, or is larger than 1 GiB.
        `ImportError`: If httpx is not installed.
    """
    try:
        import httpx
    except ImportError as error:
        raise ImportError(f"Reading `audio` from {address!r} needs httpx: `pip install httpx`.") from error

    contents = bytearray()
    try:
        with httpx.stream("GET", address, timeout=TIMEOUT_S, follow_redirects=True) as response:
            response.raise_for_status()
            for block in response.iter_bytes():
                contents += block
                if len(contents) > MAX_BYTES:
                    raise ValueError(
                        f"`audio` at {address!r} is larger than {MAX_BYTES >> 20} MiB; download it and pass its path."
                    )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"`audio` cannot be fetched from {address!r}: {error}.") from error
    return bytes(contents)


__all__ = ["fetch_audio"]
