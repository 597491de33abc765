import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from .temporal_activities import classify, container, list_documents
from .temporal_workflow import ClassifyProject


async def main() -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    client = await Client.connect(os.environ["TEMPORAL_ADDRESS"])
    with ThreadPoolExecutor(8) as threads:
        worker = Worker(
            client,
            task_queue="documents",
            workflows=[ClassifyProject],
            activities=[list_documents, classify],
            activity_executor=threads,
            max_concurrent_activities=8,
            graceful_shutdown_timeout=timedelta(seconds=20),
        )
        async with container, worker:
            print("working", flush=True)
            await stopping.wait()
            print("stopping", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
