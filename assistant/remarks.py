"""Python warnings of libraries, kept off the screen. Knows nothing about what any of them reads."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()  # warnings.catch_warnings changes the whole process
_NO_NEWS = ("DecompressionBombWarning", "ResourceWarning")  # the size was judged before; files close with the objects


@contextmanager
def heard(remarks: list[str]) -> Iterator[None]:
    """Keeps a library's Python warnings off the screen and counts them as remarks."""
    with _lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    remarks += [str(warning.message) for warning in caught if warning.category.__name__ not in _NO_NEWS]
