"""The options of `FastAPI`, for type checkers. Made by scripts/fastapi_options.py.

From FastAPI 0.165.0. At run time nothing of it is looked at, so it fits every release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from fastapi import routing
    from fastapi.params import Depends
    from fastapi.telemetry import TelemetryConfig
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute


class FastAPIOptions(TypedDict, total=False):
    """What `LifespanFastAPI` passes on to `FastAPI`."""

    telemetry: TelemetryConfig | None
    debug: bool
    routes: list[BaseRoute] | None
    title: str
    summary: str | None
    description: str
    version: str
    openapi_url: str | None
    openapi_tags: list[dict[str, Any]] | None
    servers: list[dict[str, str | Any]] | None
    dependencies: Sequence[Depends] | None
    default_response_class: type[Response]
    redirect_slashes: bool
    docs_url: str | None
    redoc_url: str | None
    swagger_ui_oauth2_redirect_url: str | None
    swagger_ui_init_oauth: dict[str, Any] | None
    middleware: Sequence[Middleware] | None
    exception_handlers: (
        dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] | None
    )
    on_startup: Sequence[Callable[..., Any]] | None
    on_shutdown: Sequence[Callable[..., Any]] | None
    terms_of_service: str | None
    contact: dict[str, str | Any] | None
    license_info: dict[str, str | Any] | None
    root_path: str
    root_path_in_servers: bool
    responses: dict[int | str, dict[str, Any]] | None
    callbacks: list[BaseRoute] | None
    webhooks: routing.APIRouter | None
    deprecated: bool | None
    include_in_schema: bool
    swagger_ui_parameters: dict[str, Any] | None
    generate_unique_id_function: Callable[[routing.APIRoute], str]
    separate_input_output_schemas: bool
    openapi_external_docs: dict[str, Any] | None
    strict_content_type: bool
    max_body_size: int | None
    form_limits: Any | None
