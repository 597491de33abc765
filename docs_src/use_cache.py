from collections import Counter
from typing import Annotated

from fastapi_lifespan_deps import Depends, LifespanFastAPI


def get_counter() -> Counter[str]:
    return Counter()


SharedCounter = Annotated[Counter[str], Depends(get_counter, scope="lifespan")]
OwnCounter = Annotated[Counter[str], Depends(get_counter, scope="lifespan", use_cache=False)]

app = LifespanFastAPI()


@app.post("/orders")
async def create_order(own: OwnCounter, shared: SharedCounter) -> dict[str, int]:
    own["calls"] += 1
    shared["calls"] += 1
    return {"own": own["calls"], "shared": shared["calls"]}


@app.post("/returns")
async def create_return(own: OwnCounter, shared: SharedCounter) -> dict[str, int]:
    own["calls"] += 1
    shared["calls"] += 1
    return {"own": own["calls"], "shared": shared["calls"]}
