import anyio

from .app import app, get_pool


async def refresh() -> None:
    await app.lifespan_container.refresh(get_pool)


anyio.run(refresh)
