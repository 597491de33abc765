from typing import Annotated

from fastapi.responses import PlainTextResponse

from fastapi_lifespan_deps import Depends, View, get_container

from .main import app


@app.get("/admin/graph", response_class=PlainTextResponse)
async def read_graph(container: Annotated[View, Depends(get_container)]) -> str:
    return str(container.graph())
