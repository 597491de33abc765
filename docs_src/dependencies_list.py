from fastapi_lifespan_deps import Depends, LifespanFastAPI


async def check_schema() -> None:
    print("the database has the schema that this release needs")


app = LifespanFastAPI(dependencies=[Depends(check_schema, scope="lifespan")])


@app.get("/")
async def read_root() -> str:
    return "Hello"
