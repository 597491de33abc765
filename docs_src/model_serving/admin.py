"""Who may swap the model: whoever has the token of the settings."""

from typing import Annotated

from fastapi import HTTPException
from fastapi.security import HTTPBearer
from starlette.types import Scope

from fastapi_lifespan_deps import Depends

from .bearer import Credentials, is_token
from .settings import SettingsDep

PATH = "/admin/model"

bearer = HTTPBearer(
    auto_error=False, scheme_name="admin token", description="MODEL_SERVING_ADMIN_TOKEN"
)


def is_guarded(scope: Scope) -> bool:
    return str(scope["path"]).rstrip("/").endswith(PATH)


# --8<-- [start:guard]
async def check_admin(
    settings: SettingsDep, credentials: Annotated[Credentials, Depends(bearer)]
) -> None:
    """Let through who has the token of the settings. Without one, there is nothing here."""
    if settings.admin_token is None:
        raise HTTPException(404, "Set MODEL_SERVING_ADMIN_TOKEN to allow that models are swapped.")
    if not is_token(credentials, settings.admin_token):
        raise HTTPException(
            401, "Send the admin token as a bearer token.", {"WWW-Authenticate": "Bearer"}
        )


# --8<-- [end:guard]
