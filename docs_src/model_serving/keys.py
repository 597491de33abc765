"""Who may ask for embeddings: whoever has the key of the settings, or anybody if there is none."""

from typing import Annotated

from fastapi.security import HTTPBearer
from starlette.types import Scope

from fastapi_lifespan_deps import Depends

from .bearer import Credentials, is_token
from .forms import Refused, speaks_openai
from .settings import SettingsDep

PATHS = ("/embeddings", "/similarity")

bearer = HTTPBearer(auto_error=False, scheme_name="key", description="MODEL_SERVING_API_KEY")


def is_guarded(scope: Scope) -> bool:
    return speaks_openai(scope) or str(scope["path"]).rstrip("/").endswith(PATHS)


# --8<-- [start:key]
async def check_key(
    settings: SettingsDep, credentials: Annotated[Credentials, Depends(bearer)]
) -> None:
    """Let through who has the key of the settings, if it has one."""
    if settings.api_key is not None and not is_token(credentials, settings.api_key):
        raise Refused(
            401,
            "Send the API key as a bearer token: there is none, or it is not the right one.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


# --8<-- [end:key]
