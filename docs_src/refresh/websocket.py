from fastapi import WebSocket

from fastapi_lifespan_deps import LifespanFastAPI

from .model import ModelDep, load_model

app = LifespanFastAPI()


@app.get("/predict")
def predict(text: str, model: ModelDep) -> str:
    return model.predict(text)


@app.websocket("/predict")
async def stream_predictions(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        model = app.lifespan_container[load_model]  # the current one
        answer = model.predict(text)  # no `await` in between
        await websocket.send_text(answer)
