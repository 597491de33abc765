from fastapi_lifespan_deps import LifespanFastAPI

from .first_steps import PoolDep


async def announce(pool: PoolDep) -> None:
    print(f"serving {pool.url}")


def say_goodbye() -> None:
    print("goodbye")


app = LifespanFastAPI(on_startup=[announce], on_shutdown=[say_goodbye])
