from fastapi_lifespan_deps import Depends


def get_url() -> str:
    return "postgresql://localhost/shop"


UrlDep = Depends(get_url(), scope="lifespan")  # type: ignore[arg-type]
