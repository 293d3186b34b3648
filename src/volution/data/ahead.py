"""Reading ahead in a thread, so that nobody waits for a disk or a network."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import Full, Queue
from typing import Generic, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")

_END = object()


class Ahead(Iterator[T], Generic[T]):
    """What a generator yields, made by a thread before it is asked for.

    Args:
        items: The generator; it runs, and is closed, in the thread.
        size: Items that may wait.

    Raises:
        BaseException: Whatever the generator raises, at the item where it does.

    Example:
        >>> list(Ahead((i * i for i in range(4)), size=2))
        [0, 1, 4, 9]
    """

    def __init__(self, items: Generator[T, None, None], size: int) -> None:
        self._queue: Queue[object] = Queue(maxsize=size)
        self._stopped = threading.Event()
        self._finished = False
        threading.Thread(target=self._work, args=(items,), daemon=True).start()

    def __next__(self) -> T:
        if self._finished:
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, _Failure):
            self._finished = True
            raise item.error
        if item is _END:
            self._finished = True
            raise StopIteration
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Stop reading; what waits is thrown away."""
        self._finished = True
        self._stopped.set()

    def _work(self, items: Generator[T, None, None]) -> None:
        last: object = _END
        try:
            for item in items:
                if not self._put(item):
                    break
        except BaseException as error:
            last = _Failure(error)
        finally:
            items.close()
        self._put(last)

    def _put(self, item: object) -> bool:
        """Hand over an item; False if nobody wants any more."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
