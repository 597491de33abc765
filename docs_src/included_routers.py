from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI

from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def get_model() -> AsyncIterator[str]:
    print("dependency up")
    yield "a model"
    print("dependency down")


ModelDep = Annotated[str, Depends(get_model, scope="lifespan")]


@asynccontextmanager
async def router_lifespan(app: Any) -> AsyncIterator[None]:
    print("router's lifespan up")
    yield
    print("router's lifespan down")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    print("app's lifespan up")
    yield
    print("app's lifespan down")


router = APIRouter(lifespan=router_lifespan)


@router.get("/model")
async def read_model(model: ModelDep) -> str:
    return model


app = LifespanFastAPI(
    lifespan=lifespan,
    on_startup=[lambda: print("hook up")],
    on_shutdown=[lambda: print("hook down")],
)
app.include_router(router, prefix="/v1")
app.include_router(router, prefix="/v2")
