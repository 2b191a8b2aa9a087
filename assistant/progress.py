"""How long work tells how far it is. Knows nothing about bars or terminals."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with how many are done, how many there are, and a short text."""
