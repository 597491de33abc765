import anyio

from fastapi_lifespan_deps import LifespanContainer, run_worker


def messages() -> list[str]:
    return ["tea", "milk"]


async def handle(message: str) -> None: ...


async def main() -> None:
    async with LifespanContainer() as container:
        await run_worker(handle, messages, container=container)


anyio.run(main)
