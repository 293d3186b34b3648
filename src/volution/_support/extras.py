"""Optional dependencies: missed at first use, with the name of the extra that brings them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["MissingExtra", "needs"]


class MissingExtra(ImportError):
    """A package is not installed that one of volution's extras brings."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a failed import inside the block into advice to install an extra.

    Args:
        extra: Name of the extra, as in ``pip install 'volution[extra]'``.

    Raises:
        MissingExtra: If a package outside volution cannot be found.

    Example:
        >>> with needs("train"):
        ...     import a_package_nobody_has
        Traceback (most recent call last):
        ...
        volution._support.extras.MissingExtra: a_package_nobody_has is not installed; \
run: pip install 'volution[train]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        # A missing module of our own is a broken install, which no extra repairs.
        if package == "volution":
            raise
        message = f"{package} is not installed; run: pip install 'volution[{extra}]'"
        raise MissingExtra(message, name=error.name) from error
