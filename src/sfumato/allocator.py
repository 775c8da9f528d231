"""The memory allocator of the process."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys

# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor, once per process; elsewhere this does nothing.

    By default glibc gives large blocks back to the kernel as soon as they are freed, and every new tensor then pays for
    the page faults of its first use: a loop that makes a tensor of 1 MB per step runs up to four times slower.
    ``SFUMATO_ALLOCATOR=0`` in the environment leaves the allocator alone, and so do glibc's own MALLOC_ variables.
    """
    asked = any(name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or asked or os.environ.get("SFUMATO_ALLOCATOR") == "0":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
