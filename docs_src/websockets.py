from typing import Annotated

from fastapi import WebSocket

from fastapi_lifespan_deps import Depends, LifespanFastAPI

from .model import Model, load_model

ModelDep = Annotated[Model, Depends(load_model, scope="lifespan")]

app = LifespanFastAPI()


@app.websocket("/sentiment")
async def stream_sentiment(websocket: WebSocket, model: ModelDep) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(model.predict(text))
