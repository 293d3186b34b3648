"""Files from the network: written whole, kept, and held against a hash ever after."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from volution._support.console import log
from volution._support.files import beside

__all__ = ["cached_file"]

_CHUNK = 1 << 20
_TIMEOUT = 30.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cached_file(url: str, path: Path, *, sha256: str | None = None, hint: str = "") -> Path:
    """Return a file, downloaded if it is not there yet.

    A file is held against its hash each time it is asked for. The hash is the one given, or that
    which the server publishes (Hugging Face does), or else the one of the first download; it is
    kept beside the file, in ``FILE.sha256``.

    Args:
        url: Where the file comes from: http, https or file.
        path: Where it is kept; its folder is made.
        sha256: Hash that is known from elsewhere, in hexadecimal digits.
        hint: What to do instead, for the end of the messages.

    Returns:
        ``path``.

    Raises:
        ValueError: If the file is not the one that the hash is of; it was removed then.
        OSError: If it cannot be downloaded or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = Path(folder, "source.bin")
        ...     _ = source.write_bytes(b"weights")
        ...     cached_file(source.as_uri(), Path(folder, "kept.bin")).read_bytes()
        b'weights'
    """
    record = path.with_name(f"{path.name}.sha256")
    recorded = _read_record(record)
    expected = sha256 or recorded
    if path.is_file():
        found = _hash(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        try:
            found, published = _download(url, unfinished, hint)
            expected = expected or published
            if expected in (None, found):
                os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    if expected not in (None, found):
        path.unlink(missing_ok=True)
        of_first = "" if sha256 or expected != recorded else f", the one kept in {record}"
        raise ValueError(
            f"{path.name} of {url} is not the expected file and was removed: its sha256 is "
            f"{found}, not {expected}{of_first}"
        )
    if recorded != found:
        if expected is None:
            log.print(
                f"no hash of {path.name} was ever published; from now on it must be {found} "
                f"(kept in {record})",
                soft_wrap=True,
            )
        _write_record(record, found, path.name)
    return path


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Notes what a server says of a file before it sends the client on to the store."""

    published: str | None = None

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        self.published = self.published or _published(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, path: Path, hint: str) -> tuple[str, str | None]:
    """Write a file; return its hash, and the one that the server publishes."""
    redirects, digest = _Redirects(), hashlib.sha256()
    opener = urllib.request.build_opener(redirects)
    request = urllib.request.Request(url, headers={"User-Agent": "volution"})
    more = f"; {hint}" if hint else ""
    try:
        with opener.open(request, timeout=_TIMEOUT) as response:
            headers = response.headers
            if headers.get_content_type() == "text/html" and not url.startswith("file:"):
                raise ConnectionError(
                    f"{url} gives a web page instead of a file; it may have moved{more}"
                )
            size = int(headers.get("Content-Length") or 0)
            _copy(response, path, digest, size)
            if size and path.stat().st_size != size:
                raise ConnectionError(
                    f"the connection broke after {path.stat().st_size:,} of {size:,} bytes of "
                    f"{url}; try again"
                )
            published = redirects.published or _published(headers)
    except urllib.error.HTTPError as error:
        raise ConnectionError(f"{url} answers {error.code} {error.reason}{more}") from error
    # A URLError is an OSError; those of the disk have an errno and a file's name.
    except (urllib.error.URLError, HTTPException, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(f"cannot download {url}: {reason}{more}") from error
    return digest.hexdigest(), published


def _copy(response: Any, path: Path, digest: Any, size: int) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with path.open("wb") as file, Progress(*columns, console=log) as progress:
        task = progress.add_task("downloading", total=size or None)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            progress.advance(task, len(chunk))


def _published(headers: HTTPMessage) -> str | None:
    """Return the hash in the header with which the Hugging Face Hub marks large files."""
    value = (headers.get("X-Linked-Etag") or "").strip('W/"').lower()
    return value if _SHA256.fullmatch(value) else None


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_record(record: Path) -> str | None:
    try:
        word = record.read_text(encoding="ascii").split()[0]
    except (FileNotFoundError, IndexError, UnicodeDecodeError):
        return None
    return word if _SHA256.fullmatch(word) else None


def _write_record(record: Path, digest: str, name: str) -> None:
    with beside(record) as unfinished:
        # In the form that `sha256sum --check` reads.
        unfinished.write_text(f"{digest}  {name}\n", encoding="ascii")
