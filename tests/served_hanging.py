"""An application that does not get through its startup: test_servers.py looks for what is said."""

import anyio

from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def get_pool() -> None:
    await anyio.sleep_forever()


app = LifespanFastAPI(slow_after=0.1)
app.get("/", dependencies=[Depends(get_pool, scope="lifespan")])(lambda: None)
