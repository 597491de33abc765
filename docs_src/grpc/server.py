import asyncio
import os
import signal

import grpc

from .service import Classifier, container, handler_of


async def main() -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([handler_of(Classifier())])
    port = server.add_insecure_port(os.environ.get("ADDRESS", "localhost:50051"))
    async with container:
        await server.start()
        print(f"serving on port {port}", flush=True)
        await stopping.wait()
        print("stopping", flush=True)
        await server.stop(grace=20)


if __name__ == "__main__":
    asyncio.run(main())
