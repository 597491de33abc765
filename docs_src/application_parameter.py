from typing import Annotated

from fastapi import FastAPI

from fastapi_lifespan_deps import Depends, LifespanFastAPI


def get_user_agent(app: FastAPI, separator: str = "/") -> str:
    return f"{app.title}{separator}{app.version}"


UserAgentDep = Annotated[str, Depends(get_user_agent, scope="lifespan")]

app = LifespanFastAPI(title="shop", version="2.1")


@app.get("/user-agent")
async def read_user_agent(user_agent: UserAgentDep) -> str:
    return user_agent
