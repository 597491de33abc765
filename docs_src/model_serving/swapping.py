"""Another model takes over while requests are served."""

import logging
import random
import secrets
import traceback
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    RefreshError,
    UnavailableLifespanDependency,
)

from .errors import ModelLoadError
from .files import (
    ModelChoice,
    ModelFiles,
    ModelSource,
    ModelSourceDep,
    check_model,
    get_model_files,
)
from .metrics import Metrics, MetricsDep
from .schemas import SwapRequest, SwapResponse
from .settings import Settings, SettingsDep
from .shutdown import Shutdown, ShutdownDep

logger = logging.getLogger(__name__)


class SwapFailed(HTTPException):
    """The model could not be loaded. 409: the old one serves on. 503: none is loaded."""

    def __init__(self, files: ModelFiles, reason: str, *, old_serves_on: bool) -> None:
        now = (
            "The old model serves on."
            if old_serves_on
            else "No model is loaded: the old one had to go first. Ask for another model, or for"
            " the old one."
        )
        super().__init__(
            409 if old_serves_on else 503,
            f"The model {files.name} {files.version} could not be loaded. {now}\n\n{reason}",
        )


class Stopping(HTTPException):
    """It isn't worth while to load another model any more."""

    def __init__(self) -> None:
        super().__init__(503, "The application is about to stop.", {"Retry-After": "1"})


class Swapper:
    """Puts another model in the place of the one that serves, one at a time.

    It doesn't depend on the model: it would be replaced with it.
    """

    def __init__(
        self,
        app: LifespanFastAPI,
        settings: Settings,
        source: ModelSource,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> None:
        self._app = app
        self._shutdown = shutdown
        self._settings = settings
        self._source = source
        self._metrics = metrics
        self._one_at_a_time = anyio.Lock()

    # --8<-- [start:swap]
    async def swap(self, choice: ModelChoice) -> ModelFiles:
        """Check a model, load it, and let it serve; return when the old one has been freed.

        Raises:
            ModelLoadError: its files aren't good. Nothing has happened.
            SwapFailed: it could not be loaded.
            Stopping: the application is about to stop.
        """
        async with self._one_at_a_time:
            if self._shutdown.is_coming:
                raise Stopping
            files = await self._check(choice)
            await self._load(files)
            return files

    # --8<-- [end:swap]

    async def reload(self) -> None:
        """Look again where the model came from, and load what is there if it's another one."""
        async with self._one_at_a_time:
            if self._shutdown.is_coming:
                return
            files = await self._check(self._source.files.choice)
            if files != self._serving():
                await self._load(files)

    async def keep_reloading(self, seconds: float) -> None:
        while True:
            # Not all worker processes, nor all machines, at the same time.
            await anyio.sleep(seconds * random.uniform(0.95, 1.05))
            try:
                await self.reload()
            except (Stopping, SwapFailed):
                pass  # It stops; or it has been logged where it failed.
            except Exception:
                logger.exception("The model was not reloaded")

    def _serving(self) -> ModelFiles | None:
        try:
            return self._app.lifespan_container[get_model_files]
        except UnavailableLifespanDependency:
            return None  # The last swap has failed, after the old model had to go.

    async def _check(self, choice: ModelChoice) -> ModelFiles:
        try:
            return await anyio.to_thread.run_sync(check_model, choice)
        except ModelLoadError:
            self._metrics.swaps.labels("refused").inc()
            raise

    # --8<-- [start:load]
    async def _load(self, files: ModelFiles) -> None:
        policy = self._settings.swap_policy
        previous, self._source.files = self._source.files, files
        try:
            # What was begun is brought to its end, even if the client goes away.
            with anyio.CancelScope(shield=True):
                draining = await self._app.lifespan_container.refresh(
                    get_model_files, policy=policy, drain_timeout=self._settings.drain_timeout
                )
        except RefreshError as error:
            self._source.files = previous
            raise Stopping from error
        except Exception as error:
            self._source.files = previous
            self._metrics.swaps.labels("failed").inc()
            logger.exception("The model %s %s could not be loaded", files.name, files.version)
            # They hold what was loaded, as long as anybody holds the error.
            traceback.clear_frames(error.__traceback__)
            old_serves_on = policy == "availability_preserving"
            reason = str(error) or type(error).__name__
            raise SwapFailed(files, reason, old_serves_on=old_serves_on) from error
        self._metrics.swaps.labels("ok").inc()
        # So there are never more than two models in memory.
        await draining.wait()

    # --8<-- [end:load]


# --8<-- [start:provider]
async def get_swapper(
    app: LifespanFastAPI,
    settings: SettingsDep,
    source: ModelSourceDep,
    metrics: MetricsDep,
    shutdown: ShutdownDep,
) -> AsyncIterator[Swapper]:
    """Have the swapper, and its timer if one is set, as long as the application runs."""
    swapper = Swapper(app, settings, source, metrics, shutdown)
    async with anyio.create_task_group() as tasks:
        if settings.refresh_every is not None:
            tasks.start_soon(swapper.keep_reloading, settings.refresh_every)
        yield swapper
        tasks.cancel_scope.cancel()


SwapperDep = Annotated[Swapper, Depends(get_swapper, scope="lifespan")]
# --8<-- [end:provider]

# --8<-- [start:route]
bearer = HTTPBearer(auto_error=False, description="MODEL_SERVING_ADMIN_TOKEN")


async def check_admin(
    settings: SettingsDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """Let through who has the token of the settings. Without one, there is nothing here."""
    if settings.admin_token is None:
        raise HTTPException(404, "Set MODEL_SERVING_ADMIN_TOKEN to allow that models are swapped.")
    expected = settings.admin_token.get_secret_value()
    given = "" if credentials is None else credentials.credentials
    # A header is read as latin-1, whatever the client has written.
    if not secrets.compare_digest(given.encode("latin-1"), expected.encode()):
        raise HTTPException(
            401, "Send the admin token as a bearer token.", {"WWW-Authenticate": "Bearer"}
        )


router = APIRouter(tags=["operation"])


@router.post("/admin/model", dependencies=[Depends(check_admin)])
async def swap_model(body: SwapRequest, swapper: SwapperDep) -> SwapResponse:
    """Let another model serve. The answer comes when it does, and the old one has been freed."""
    try:
        files = await swapper.swap(ModelChoice.of_request(body.directory, body.sha256))
    except ModelLoadError as error:
        raise HTTPException(409, str(error)) from error
    return SwapResponse(model=files.name, version=files.version)


# --8<-- [end:route]
