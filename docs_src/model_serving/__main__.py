"""Serve the example: `python -m docs_src.model_serving --port 8000`."""

import argparse
import logging
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn

from .settings import LogSettings

logger = logging.getLogger(__package__)

LOGGING = Path(__file__).parents[1] / "deploy" / "logging.json"

TRY = """\
Ready. Open {url}/ in a browser, or try it here:

  curl -s {url}/similarity -H 'content-type: application/json' \\
    -d '{{"query": "How do I log in?", "candidates": ["Reset my password", "Bake bread"]}}'

Press Ctrl-C to free the model and stop.
"""


TAKEN = """\
{prog}: can't listen on {host}:{port}: {reason}.
Name another port with --port, or let the system pick one with --port 0.\
"""


class Server(uvicorn.Server):
    """Says where it serves, and how to try the example, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            # The port that was bound: `--port 0` lets the system pick one.
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            url = f"http://{host}:{port}"
            logger.info("Serving on %s", url)
            if LogSettings().log_format == "text":  # read by a person
                print(TRY.format(url=url), flush=True)


def bind(host: str, port: int) -> socket.socket:
    """Take the port. Nobody can connect before the application serves: the server listens."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # As servers do: connections that are closing from a former run don't matter.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def main() -> None:
    """Serve until Ctrl-C, which is a success: exit 0. A failed startup exits non-zero."""
    parser = argparse.ArgumentParser("scripts/serve", description="Serve sentence embeddings.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: one that the system picks")
    arguments = parser.parse_args()

    # Before a model is loaded, which takes seconds.
    try:
        bound = bind(arguments.host, arguments.port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.exit(TAKEN.format(prog=parser.prog, reason=reason, **vars(arguments)))

    config = uvicorn.Config(f"{__package__}.main:app", log_config=str(LOGGING))
    # uvicorn raises Ctrl-C again once it has shut down: then nothing is left to do. It exits by
    # itself, non-zero, when startup fails.
    with bound, suppress(KeyboardInterrupt):
        Server(config).run([bound])


if __name__ == "__main__":
    main()
