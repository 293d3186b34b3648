"""Small shards, written with nothing but tarfile, and a server for them."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image


def png(value: int, size: int = 8) -> bytes:
    """A grey square as a PNG file."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(file, "png")
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar file of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_numbers(folder: Path, counts: Iterable[int], name: str = "train") -> list[Path]:
    """Shards whose samples are numbered through: label, name and grey value are the number."""
    paths, number = [], 0
    for i, count in enumerate(counts):
        members = []
        for _ in range(count):
            key = f"part{i}/{number:04d}"
            members += [(f"{key}.cls", str(number).encode()), (f"{key}.png", png(number))]
            number += 1
        paths.append(write_tar(folder / f"{name}-{i:06d}.tar", members))
    return paths


@contextmanager
def served(folder: Path, handler: type[SimpleHTTPRequestHandler] | None = None) -> Iterator[str]:
    """Serve a folder over http on this machine; gives the address."""
    base = handler or SimpleHTTPRequestHandler

    class Handler(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
