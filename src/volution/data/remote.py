"""Files on web servers, read from front to back; a broken connection is taken up where it broke."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from types import TracebackType
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

__all__ = ["RemoteFile", "is_remote"]

DELAYS = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each further attempt."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""

_WORTH_ANOTHER_ATTEMPT = (408, 425, 429)

T = TypeVar("T")


def is_remote(place: str) -> bool:
    """Return whether a place is on a web server.

    Example:
        >>> is_remote("https://example.org/train-000000.tar"), is_remote("train-000000.tar")
        (True, False)
    """
    return place.startswith(("http://", "https://"))


class RemoteFile:
    """The bytes at a URL, from the first to the last; a context manager.

    Args:
        url: Where they are, over http or https.

    Attributes:
        length: How many there are; None if the server does not say.

    Raises:
        FileNotFoundError: If the server has no such file, when it is opened.
        OSError: If it cannot be read, also after several attempts; the message says why.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.position = 0
        self.length: int | None = None
        self._response: HTTPResponse | None = None
        self._persistently(self._connect)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most ``size`` if it is not negative; none at the end."""
        return self._persistently(lambda: self._read(size))

    def close(self) -> None:
        """Hang up."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, size: int) -> bytes:
        if self._response is None:
            self._connect()
        assert self._response is not None
        found = self._response.read(None if size < 0 else size)
        if not found and size and self.length is not None and self.position < self.length:
            raise ConnectionError(f"it ended after {self.position} of {self.length} bytes")
        self.position += len(found)
        return found

    def _connect(self) -> None:
        headers = {"User-Agent": "volution"}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
        response: HTTPResponse = urlopen(Request(self.url, headers=headers), timeout=TIMEOUT)
        self._response = response
        if self.position and response.status != 206:  # the server begins at the beginning
            left = self.position
            while left:
                passed = len(response.read(min(left, 1 << 20)))
                if not passed:
                    raise ConnectionError(f"it ended {left} bytes before where it broke off")
                left -= passed
        elif not self.position and response.headers["Content-Length"]:
            self.length = int(response.headers["Content-Length"])

    def _persistently(self, action: Callable[[], T]) -> T:
        for delay in (*DELAYS, None):
            try:
                return action()
            except (OSError, HTTPException) as error:
                self.close()
                status = error.code if isinstance(error, HTTPError) else None
                if status in (404, 410):
                    raise FileNotFoundError(f"no file at {self.url} (status {status})") from None
                final = status is not None and status < 500
                if final and status not in _WORTH_ANOTHER_ATTEMPT:
                    raise OSError(f"{self.url} is refused: {error}") from error
                if delay is None:
                    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
                    attempts = len(DELAYS) + 1
                    raise OSError(
                        f"{self.url} could not be read, in {attempts} attempts: {reason}"
                    ) from error
                time.sleep(delay)
        raise AssertionError("unreachable")
