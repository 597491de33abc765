from fastapi_lifespan_deps import Depends, LifespanFastAPI

log: list[str] = []


async def check_schema() -> None:
    log.append("the database has the schema that this release needs")


app = LifespanFastAPI(dependencies=[Depends(check_schema, scope="lifespan")])


@app.get("/")
async def read_root() -> str:
    return "Hello"
