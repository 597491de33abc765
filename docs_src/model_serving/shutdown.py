"""Notice that the service is about to stop, before the server does."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from types import FrameType
from typing import Annotated

from fastapi_lifespan_deps import Depends

from .settings import SettingsDep


class Shutdown:
    """Whether the service has been told to stop."""

    is_coming = False


async def get_shutdown(settings: SettingsDep) -> AsyncIterator[Shutdown]:
    """Notice SIGTERM, and pass it on to the server after the delay of the settings.

    Meanwhile `/readyz` answers 503, so that nothing new is sent here, and all else is served.
    """
    shutdown = Shutdown()
    loop, delay = asyncio.get_running_loop(), settings.shutdown_delay
    server = signal.getsignal(signal.SIGTERM)
    # In a test client, or an actor, there is no server whose signal this would be.
    if not callable(server) or threading.current_thread() is not threading.main_thread():
        yield shutdown
        return

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if shutdown.is_coming or not delay:  # A second one means: now.
            server(number, frame)
        else:
            # A handler may run in the middle of anything that the event loop does.
            loop.call_soon_threadsafe(
                loop.call_later, settings.shutdown_delay, server, number, None
            )
        shutdown.is_coming = True

    signal.signal(signal.SIGTERM, on_sigterm)
    yield shutdown
    signal.signal(signal.SIGTERM, server)


def is_not_coming(shutdown: Shutdown) -> bool:
    """Tell `/readyz` whether requests should come."""
    return not shutdown.is_coming


ShutdownDep = Annotated[Shutdown, Depends(get_shutdown, scope="lifespan", health=is_not_coming)]
