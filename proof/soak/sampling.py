"""What a server's process takes meanwhile, seen from outside: for the plot."""

from contextlib import suppress

import anyio
import psutil

from .driver import Driver

EVERY = 0.5


async def sample(driver: Driver) -> None:
    process = psutil.Process(driver.pid)
    while True:
        sample = {
            "time": driver.seconds,
            "threads": process.num_threads(),
            "descriptors": process.num_fds(),
        }
        with suppress(psutil.AccessDenied):  # on macOS, of another process
            sample["memory"] = process.memory_full_info().uss
        driver.samples.append(sample)
        await anyio.sleep(EVERY)
