"""Count user instructions through Linux's perf_event_open, where the kernel gives them.

An instruction count hardly varies between runs, so it shows changes that time does not.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Callable

PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
HARDWARE, INSTRUCTIONS = 0, 1

# Bits of perf_event_attr: threads that start later count too; the kernel and a hypervisor don't.
INHERIT, EXCLUDE_KERNEL, EXCLUDE_HV = 1 << 1, 1 << 5, 1 << 6


def counter() -> tuple[Callable[[], int] | None, str | None]:
    """A function that gives the instructions so far; else None, and why the kernel refuses.

    Make it before threads start: only those that start later are counted.
    """
    number = PERF_EVENT_OPEN.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return None, "only on Linux, x86-64 and AArch64"
    # struct perf_event_attr, version 0: type, size, config, period, sample and read format, flags
    flags = INHERIT | EXCLUDE_KERNEL | EXCLUDE_HV
    attributes = struct.pack("=IIQQQQQQQ", HARDWARE, 64, INSTRUCTIONS, 0, 0, 0, flags, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.argtypes = [ctypes.c_long, ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.c_ulong]
    # this process, on any CPU, in no group
    descriptor = libc.syscall(number, attributes, 0, -1, -1, 0)
    if descriptor < 0:
        return None, os.strerror(ctypes.get_errno())
    return lambda: int.from_bytes(os.read(descriptor, 8), "little"), None
