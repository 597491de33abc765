"""How the service is, for a person: `/livez` and `/readyz` are for orchestrators, in main.py."""

from fastapi import APIRouter, Request, Response

from fastapi_lifespan_deps import (
    UnavailableLifespanDependency,
    UninitializedLifespanDependency,
    get_container,
)

from .batching import get_batcher
from .schemas import Health
from .shutdown import get_shutdown

router = APIRouter(tags=["operation"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", responses={503: {"model": Health}})
async def healthz(request: Request, response: Response) -> Health:
    """Say which model serves, and where; or 503, and why requests had better go elsewhere."""
    # Looked up by hand: as parameters, what isn't there would fail the request before it is here.
    try:
        container = await get_container(request)
        if container[get_shutdown].is_coming:
            health = Health(status="draining")
        else:
            batcher = container[get_batcher]
            return Health(
                status="ready",
                model=batcher.files.name,
                version=batcher.files.version,
                device=str(batcher.encoder.device),
            )
    except UnavailableLifespanDependency:
        health = Health(status="no model")
    except UninitializedLifespanDependency:
        health = Health(status="starting")
    response.status_code = 503
    return health
