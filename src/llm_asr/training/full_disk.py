"""Recognises errors that a full disk causes, and reports them clearly."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


# PyTorch's archive writer reports a wrong file position when the disk is full.
ARCHIVE_ERRORS = ("unexpected pos", "PytorchStreamWriter failed writing")


@contextmanager
def name_full_disk(folder: str | Path) -> Iterator[None]:
    """
    Replace errors that a full disk causes by "No space left on device" with the name of the folder. The libraries that write
    to the folder report other or incomplete errors.

    Raises:
        `OSError`: With `errno.ENOSPC`, instead of an error that a full disk has caused.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not _is_full_disk(error):
            raise
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}; make room and resume", str(folder)) from error


def _is_full_disk(error: BaseException) -> bool:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return any(
        (isinstance(cause, OSError) and cause.errno == errno.ENOSPC)
        or any(text in str(cause) for text in ARCHIVE_ERRORS)
        for cause in causes
    )


__all__ = ["name_full_disk"]
