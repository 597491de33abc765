from fastapi import FastAPI
from fastapi.testclient import TestClient

from .app import PoolDep

app = FastAPI()


@app.get("/users/{user_id}")
async def read_user(user_id: int, pool: PoolDep) -> str:
    return await pool.fetch_user(user_id)


with TestClient(app) as client:
    client.get("/users/1")
