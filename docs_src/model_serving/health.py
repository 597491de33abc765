"""How the service is, for whoever restarts it or sends it requests."""

from fastapi import APIRouter, Request, Response

from fastapi_lifespan_deps import (
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
    get_container,
)

from .batching import get_batcher
from .schemas import Liveness, Readiness
from .shutdown import get_shutdown

router = APIRouter(tags=["operation"])


@router.get("/livez")
async def livez() -> Liveness:
    """Say that the process lives, whatever the model does."""
    return Liveness()


@router.get("/readyz", responses={503: {"model": Readiness}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Say which model serves, and where; or 503, and why requests had better go elsewhere."""
    # Looked up by hand: as parameters, what isn't there would fail the request before it is here.
    try:
        container = await get_container(request)
        if container[get_shutdown].is_coming:
            readiness = Readiness(status="draining")
        else:
            batcher = container[get_batcher]
            return Readiness(
                status="ready",
                model=batcher.files.name,
                version=batcher.files.version,
                device=str(batcher.encoder.device),
            )
    except UnavailableLifespanDependency:
        readiness = Readiness(status="no model")
    except UninitializedLifespanDependency:
        readiness = Readiness(status="starting")
    response.status_code = 503
    return readiness
