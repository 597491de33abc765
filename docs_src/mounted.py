from fastapi import FastAPI

from fastapi_lifespan_deps import LifespanFastAPI

from .first_steps import PoolDep

admin = FastAPI()


@admin.get("/pool")
async def read_admin_pool(pool: PoolDep) -> str:
    return f"{pool.url} {id(pool)}"


app = LifespanFastAPI()
app.mount("/admin", admin)


@app.get("/pool")
async def read_pool(pool: PoolDep) -> str:
    return f"{pool.url} {id(pool)}"
