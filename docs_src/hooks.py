from fastapi_lifespan_deps import LifespanFastAPI

from .first_steps import PoolDep

log: list[str] = []


async def announce(pool: PoolDep) -> None:
    log.append(f"serving {pool.url}")


def say_goodbye() -> None:
    log.append("goodbye")


app = LifespanFastAPI(on_startup=[announce], on_shutdown=[say_goodbye])
