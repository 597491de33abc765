"""Another model takes over while requests are served."""

import logging
import random
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter
from typing import Annotated

import anyio
from fastapi import APIRouter, HTTPException

from fastapi_lifespan_deps import (
    Depends,
    LifespanFastAPI,
    RefreshError,
    UninitializedLifespanDependency,
)

from . import admin
from .batching import get_batcher
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
    """Another model was asked for and doesn't serve. 409: the old one does. 503: none does."""

    def __init__(self, what: str, reason: str, serving: ModelFiles | None) -> None:
        now = (
            f"The old model, {serving.name} {serving.version}, serves on."
            if serving is not None
            else "No model is loaded. Ask for another one, or for the old one."
        )
        super().__init__(503 if serving is None else 409, f"{what} {now}\n\n{reason}")


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
        self.is_loading = False
        """Whether a model is being loaded, so that one will serve soon if none does."""

    # --8<-- [start:swap]
    async def swap(self, choice: ModelChoice) -> ModelFiles:
        """Check a model, load it, and let it serve; return when the old one has been freed.

        Raises:
            SwapFailed: it isn't fit to serve. If its files say so, nothing has happened.
            Stopping: the application is about to stop.
        """
        async with self._one_at_a_time:
            if self._shutdown.is_coming:
                raise Stopping
            started = perf_counter()
            files = await self._check(choice, started)
            await self._load(files, started)
            return files

    # --8<-- [end:swap]

    async def reload(self) -> None:
        """Look again where the model came from, and load what is there if it's another one."""
        async with self._one_at_a_time:
            if self._shutdown.is_coming:
                return
            started = perf_counter()
            files = await self._check(self._source.files.choice, started)
            if files != self._serving():
                await self._load(files, started)

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
            return self._app.lifespan_container[get_batcher].files
        except UninitializedLifespanDependency:
            return None  # The last swap has failed, after the old model had to go.

    def _count(self, result: str, started: float) -> None:
        self._metrics.swap_seconds.labels(result).observe(perf_counter() - started)

    async def _check(self, choice: ModelChoice, started: float) -> ModelFiles:
        try:
            return await anyio.to_thread.run_sync(check_model, choice)
        except ModelLoadError as error:
            self._count("refused", started)
            refused = SwapFailed("The model is refused.", str(error), self._serving())
            logger.error(refused.detail)
            raise refused from error

    # --8<-- [start:load]
    async def _load(self, files: ModelFiles, started: float) -> None:
        if self._shutdown.is_coming:  # by now
            raise Stopping
        policy = self._settings.swap_policy
        logger.info("Another model is asked for: %s %s", files.name, files.version)
        previous, self._source.files = self._source.files, files
        self.is_loading = True
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
            self._count("failed", started)
            what = f"The model {files.name} {files.version} could not be loaded."
            failed = SwapFailed(what, str(error) or type(error).__name__, self._serving())
            logger.exception(failed.detail)
            # They hold what was loaded, as long as anybody holds the error.
            traceback.clear_frames(error.__traceback__)
            try:
                raise failed from error
            finally:
                del failed  # It would hold its traceback, which holds this.
        finally:
            self.is_loading = False
        self._count("ok", started)
        logger.info("The model %s %s serves now", files.name, files.version)
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
router = APIRouter(tags=["operation"])


@router.post(admin.PATH, dependencies=[Depends(admin.check_admin)])
async def swap_model(
    swapper: SwapperDep, settings: SettingsDep, body: SwapRequest | None = None
) -> SwapResponse:
    """Let another model serve. The answer comes when it does, and the old one has been freed."""
    wanted = body or SwapRequest()
    directory = None if wanted.directory is None else Path(wanted.directory)
    choice = ModelChoice.of_request(settings, directory, wanted.sha256)
    files = await swapper.swap(choice)
    return SwapResponse(model=files.name, version=files.version)


# --8<-- [end:route]
