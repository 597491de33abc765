"""Serve the example: `python -m docs_src.model_serving --port 8000`."""

import argparse
import socket
from contextlib import suppress
from pathlib import Path

import uvicorn

from .settings import LogSettings

LOGGING = Path(__file__).parents[1] / "deploy" / "logging.json"

TRY = """\
Ready. Open {url}/ in a browser, or try it here:

  curl -s {url}/similarity -H 'content-type: application/json' \\
    -d '{{"query": "How do I log in?", "candidates": ["Reset my password", "Bake bread"]}}'

Press Ctrl-C to free the model and stop.
"""


class Server(uvicorn.Server):
    """Says how to try the example, once it serves."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        is_read = LogSettings().log_format == "text"  # by a person
        if self.started and not self.should_exit and is_read:
            # The port that was bound: `--port 0` lets the system pick one.
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host
            print(TRY.format(url=f"http://{host}:{port}"), flush=True)


def main() -> None:
    """Serve until Ctrl-C, which is a success: exit 0. A failed startup exits non-zero."""
    parser = argparse.ArgumentParser("scripts/serve", description="Serve sentence embeddings.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: one that the system picks")
    arguments = parser.parse_args()

    app = f"{__package__}.main:app"
    config = uvicorn.Config(app, host=arguments.host, port=arguments.port, log_config=str(LOGGING))
    # uvicorn raises Ctrl-C again once it has shut down: then nothing is left to do. It exits by
    # itself, non-zero, when startup fails or the port is taken.
    with suppress(KeyboardInterrupt):
        Server(config).run()


if __name__ == "__main__":
    main()
