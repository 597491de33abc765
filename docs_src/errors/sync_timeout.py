from fastapi_lifespan_deps import Depends


def load_model() -> str:
    return "a model"  # takes seconds, and blocks


ModelDep = Depends(load_model, scope="lifespan", start_timeout=60.0)
