from fastapi_lifespan_deps import Depends

from .app import get_pool

PoolDep = Depends(get_pool, scope="lifetime")  # type: ignore[arg-type]
