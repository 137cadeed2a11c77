"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_for(condition: Callable[[], Value], seconds: float = 240.0) -> Value:
    """What a condition says once it says something true; AssertionError where it does not in so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"nothing happened in {seconds:g} s"
        time.sleep(0.05)
    return value
