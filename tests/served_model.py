"""The example application docs_src/model_serving, which tells of each request that it has begun.

`python -m tests.served_model` is `python -m docs_src.model_serving`, with that.
"""

import os

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from docs_src.model_serving.__main__ import main
from docs_src.model_serving.main import app


class TellOfRequests:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_process_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["process-id"] = str(os.getpid())
            await send(message)

        if scope["type"] == "http":
            # In one piece: other processes write there, too.
            os.write(2, f"begun {scope['path']}\n".encode())
        await self.app(scope, receive, send_with_process_id)


app.add_middleware(TellOfRequests)

if __name__ == "__main__":
    main()
