"""From the bytes of an image file to pixels, the way a person sees them."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

__all__ = ["MAX_PIXELS", "decode_image", "open_image", "unlimited"]

MAX_PIXELS = 100_000_000
"""Images of more pixels are refused, unless asked for."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF orientation tag."""

_DRAWN_BY_PROGRAMS = ("EPS", "WMF", "EMF")
"""Formats that Pillow hands to another program, which then runs what the file says."""

_PILLOWS_LIMIT = Image.MAX_IMAGE_PIXELS or 0

# Filters of warnings and Pillow's limit belong to the whole process.
_lock = threading.RLock()


def open_image(path: Path, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file completely.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled to 8
    bits, and of an animation the first frame is taken.

    Args:
        path: The file.
        channels: 3 for RGB, 1 for grey.
        max_pixels: Images of more pixels are refused before they are decoded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded or is too large; the message names the file.
    """
    try:
        with path.open("rb") as file:
            return _read(file, str(path), channels, max_pixels)
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {path}") from None
    except OSError as error:  # a folder, no permission, a disk that fails
        raise ValueError(f"{path} is not a readable image: {error.strerror or error}") from error


def decode_image(
    content: bytes, name: str, channels: int = 3, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image from the bytes of its file, as :func:`open_image` does.

    Args:
        content: What the file holds.
        name: What to call the image in messages.
        channels: 3 for RGB, 1 for grey.
        max_pixels: Images of more pixels are refused before they are decoded.

    Raises:
        ValueError: If it cannot be decoded or is too large; the message has the name.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("LA", (20, 10), (0, 0)).save(file, "png")
        >>> image = decode_image(file.getvalue(), "nothing.png")
        >>> image.mode, image.size, image.getpixel((0, 0))
        ('RGB', (20, 10), (255, 255, 255))
        >>> decode_image(file.getvalue(), "nothing.png", max_pixels=100)
        Traceback (most recent call last):
        ...
        ValueError: nothing.png has 20 x 10 pixels, more than max_pixels = 100 allows; \
to read it all the same raise --max_pixels
    """
    return _read(io.BytesIO(content), name, channels, max_pixels)


@contextmanager
def unlimited(image: Image.Image) -> Iterator[None]:
    """Let an image be cut up that is larger than Pillow likes.

    Pillow warns of, or refuses, crops above a limit of its own; ours was asked for when reading.
    """
    if image.width * image.height <= _PILLOWS_LIMIT:
        yield
        return
    with _lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _read(file: BinaryIO, name: str, channels: int, max_pixels: int) -> Image.Image:
    with _named(name, file):
        opened = _opened(file)
    with opened as image:
        _refuse(image, name, max_pixels)
        with _named(name, file):
            image.load()
            return _upright(_in_mode(image, "RGB" if channels == 3 else "L"), _orientation(image))


@contextmanager
def _named(name: str, file: BinaryIO) -> Iterator[None]:
    """Turn what decoding raises into an error with the name of the image."""
    try:
        yield
    except MemoryError:
        raise
    # Pillow's decoders raise whatever a broken file makes them stumble over.
    except Exception as error:
        reason = str(error).replace(repr(file), "the file") or type(error).__name__
        raise ValueError(f"{name} is not a readable image: {reason}") from error


def _refuse(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} pixels, more than max_pixels = {max_pixels} allows; "
            f"to read it all the same raise --max_pixels"
        )
    if image.format in _DRAWN_BY_PROGRAMS:
        raise ValueError(f"{name} is a drawing ({image.format}), not an image of pixels")


def _opened(file: BinaryIO) -> Image.Image:
    """Read the head of an image file; what Pillow has to remark on it is of no use to anyone."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(file)
        except Image.DecompressionBombError:
            file.seek(0)
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(file)
            finally:
                Image.MAX_IMAGE_PIXELS = before


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, where there is none."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
        # The pixels are sound, and so every viewer shows them.
        except Exception:
            return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return a loaded image as RGB or L; itself if it is."""
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        paper = Image.new("RGBA", seen.size, "white")
        paper.alpha_composite(seen)
        image = paper
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # Pillow cuts off what is above 255 instead.
        deep = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its values are {'32-bit integers' if image.mode == 'I' else 'floating point'}, and "
            f"nothing says which of them are black and white; save it with 8 or 16 bits"
        )
    return image if image.mode == mode else image.convert(mode)
