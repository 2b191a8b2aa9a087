"""No worker process outlives the one that started it. Knows nothing about what a worker does."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """See to it that this worker process ends when the one that started it ends, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
