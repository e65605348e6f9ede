"""Prefetch the next item on a background thread."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items in order. While the caller uses an item, a thread makes the next one."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(next, iterator, end)
        while (item := future.result()) is not end:
            future = executor.submit(next, iterator, end)
            yield item  # type: ignore[misc]
