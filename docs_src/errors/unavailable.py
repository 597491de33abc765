from contextlib import suppress

import anyio

from .app import Pool, app, get_pool


def get_broken_pool() -> Pool:
    raise ConnectionError("no database at localhost")


async def main() -> None:
    async with app.router.lifespan_context(app):
        container = app.lifespan_container
        app.dependency_overrides[get_pool] = get_broken_pool
        with suppress(ConnectionError):
            await container.refresh(get_pool, policy="resource_preserving")
        container[get_pool]


anyio.run(main)
