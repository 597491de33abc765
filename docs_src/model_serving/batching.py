"""The batcher: what requests send at the same time goes through the model together."""

import math
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Annotated, NamedTuple, TypeVar

import torch
from anyio import CancelScope, CapacityLimiter, Event, create_task_group, move_on_after, to_thread
from fastapi import HTTPException

from fastapi_lifespan_deps import Depends

from .embedding import Encoder, EncoderDep, Input
from .files import ModelFiles, ModelFilesDep
from .metrics import Metrics, MetricsDep
from .settings import Settings, SettingsDep
from .trial import try_model

T = TypeVar("T")
R = TypeVar("R")

MAX_BATCH_TOKENS_ON_CPU = 512
MAX_BATCH_TOKENS = 16_384


class QueueFull(HTTPException):
    """As many texts wait as may: the client is told to come back."""

    def __init__(self, waiting: int, limit: int, retry_after: int) -> None:
        super().__init__(
            503,
            f"{waiting:,} texts are waiting, and at most {limit:,} may. Send this again later.",
            {"Retry-After": str(retry_after)},
        )


class WaitedTooLong(HTTPException):
    """Some texts of a request still wait when its time is up: too much is asked for just now."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(
            503,
            "The time for this request was over before its turn came. Send this again later.",
            {"Retry-After": str(retry_after)},
        )


class ComputedTooLong(HTTPException):
    """The model works on the last texts of a request when its time is up."""

    def __init__(self) -> None:
        super().__init__(504, "The model took too long.")


class BatcherStopped(HTTPException):
    """A request that lasted longer than the drain timeout wants more of a model that is gone."""

    def __init__(self) -> None:
        super().__init__(
            503, "The model was replaced meanwhile. Send this again.", {"Retry-After": "1"}
        )


class BatchFailed(RuntimeError):
    """The forward pass that a request was part of failed; the cause says why."""


class Embedded(NamedTuple):
    rows: torch.Tensor
    """One for each text, in their order, on the CPU."""
    batch_size: int
    """How many texts were in the largest of the batches that worked on it."""
    tokens: int
    """How many word pieces the model has read, without padding."""


@dataclass(eq=False, slots=True)
class _Request:
    size: int
    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    batch_size: int = 0
    tokens: int = 0
    error: BaseException | None = None
    done: Event = field(default_factory=Event)


@dataclass(eq=False, slots=True)
class _Text:
    request: _Request
    index: int
    text: Input
    arrived: float
    token_ids: list[int] | None = None

    @property
    def length(self) -> int:
        """In word pieces, once it is tokenized."""
        return len(self.token_ids or ())


class Batcher:
    """Embeds texts in batches that are made of whatever has queued meanwhile.

    Use it in the event loop that made it, from any number of tasks. While `run` runs, a worker
    thread tokenizes and embeds, one batch at a time; all else happens in the event loop.
    """

    def __init__(
        self,
        encoder: Encoder,
        files: ModelFiles,
        metrics: Metrics,
        *,
        dimensions: int,
        max_batch_size: int,
        max_batch_tokens: int,
        batch_wait_timeout_s: float,
        max_queue_size: int,
    ) -> None:
        self.encoder = encoder
        self.files = files
        self.dimensions = dimensions
        self.started_at = int(time())
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._wait_timeout = batch_wait_timeout_s
        self._max_queue_size = max_queue_size
        self._waiting: dict[_Text, None] = {}  # in the order of their arrival
        self._changed = Event()
        self._is_closed = False
        self._seconds_per_text = 0.0
        self._one_at_a_time = CapacityLimiter(1)

    # --8<-- [start:embed]
    async def embed(self, texts: Sequence[Input], deadline: float = math.inf) -> Embedded:
        """Embed one text or more; if the caller is cancelled, those that wait leave the queue.

        The deadline is by the clock of the event loop, `anyio.current_time()`.

        Raises:
            QueueFull: there is no room for them in the queue. None of them enters it.
            WaitedTooLong, ComputedTooLong: the deadline has come. They have left the queue.
            BatchFailed: the model failed on one of them, or on one that was in the same batch.
            BatcherStopped: the batcher has been closed.
        """
        if self._is_closed:
            raise BatcherStopped
        if len(self._waiting) + len(texts) > self._max_queue_size:
            raise QueueFull(len(self._waiting), self._max_queue_size, self._retry_after())
        request, now = _Request(len(texts)), perf_counter()
        own = [_Text(request, index, text, now) for index, text in enumerate(texts)]
        self._waiting.update(dict.fromkeys(own))
        self._metrics.queue_size.inc(len(own))
        self._changed.set()
        try:
            with CancelScope(deadline=deadline) as in_time:
                await request.done.wait()
        finally:
            # If it was cancelled, or its time is up.
            left = self._leave(own)
        if in_time.cancelled_caught:
            raise WaitedTooLong(self._retry_after()) if left else ComputedTooLong
        if isinstance(request.error, BatcherStopped):
            raise BatcherStopped
        if request.error is not None:
            raise BatchFailed(str(request.error)) from request.error
        self._metrics.request_tokens.observe(request.tokens)
        rows = torch.stack([request.rows[index] for index in range(request.size)])
        return Embedded(rows, request.batch_size, request.tokens)

    # --8<-- [end:embed]

    def close(self) -> None:
        """Take nothing more, and let `run` end when all that waits is done."""
        self._is_closed = True
        self._changed.set()

    # --8<-- [start:run]
    async def run(self) -> None:
        """Embed what waits, batch by batch, until the batcher is closed and nothing waits."""
        try:
            while await self._something_waits():
                if new := [text for text in self._waiting if text.token_ids is None]:
                    await self._tokenize(new)
                if batch := self._next_batch():
                    await self._embed(batch)
        finally:
            # Nobody waits for ever, if it is cancelled.
            self._is_closed = True
            self._fail(list(self._waiting), BatcherStopped())

    # --8<-- [end:run]

    async def _something_waits(self) -> bool:
        while not self._waiting:
            if self._is_closed:
                return False
            await self._change()
        oldest = next(iter(self._waiting))
        if (rest := oldest.arrived + self._wait_timeout - perf_counter()) > 0:
            with move_on_after(rest):
                while len(self._waiting) < self._max_batch_size and not self._is_closed:
                    await self._change()
        return True

    async def _change(self) -> None:
        self._changed = Event()
        await self._changed.wait()

    async def _tokenize(self, texts: list[_Text]) -> None:
        # Before it is known which texts go together: that depends on their lengths in word pieces.
        try:
            with self._metrics.tokenizing_seconds.time():
                all_ids = await self._in_thread(
                    self.encoder.tokenize, [text.text for text in texts]
                )
        except Exception as error:
            # One text is enough, and nobody knows which. Whose is it?
            requests = dict.fromkeys(text.request for text in texts)
            if len(requests) == 1:
                self._metrics.failed_batches.labels("tokenizing").inc()
                self._fail(texts, error)
                return
            for request in requests:
                await self._tokenize([text for text in texts if text.request is request])
        else:
            for text, token_ids in zip(texts, all_ids, strict=True):
                text.token_ids = token_ids

    # --8<-- [start:next_batch]
    def _next_batch(self) -> list[_Text]:
        """The text that has waited longest, with those whose length is nearest to its own.

        In a batch, each text costs as much as the longest. So the texts are sorted by length and
        cut where a batch is full. The batch with the oldest in it is next: nobody starves.
        """
        # Others may have come while these were tokenized.
        ready = [text for text in self._waiting if text.token_ids is not None]
        batch: list[_Text] = []
        for text in sorted(ready, key=lambda text: text.length):
            size, tokens = len(batch) + 1, (len(batch) + 1) * text.length
            if batch and (size > self._max_batch_size or tokens > self._max_batch_tokens):
                if ready[0] in batch:
                    break
                batch = []
            batch.append(text)
        return batch

    # --8<-- [end:next_batch]

    async def _embed(self, batch: list[_Text]) -> None:
        self._leave(batch)
        started = perf_counter()
        for text in batch:
            self._metrics.queue_seconds.observe(started - text.arrived)
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_tokens.observe(len(batch) * max(text.length for text in batch))
        try:
            token_ids = [text.token_ids or [] for text in batch]
            rows = await self._in_thread(self.encoder.encode, token_ids)
        except BaseException as error:
            # They hold what was on the device, as long as anybody holds the error.
            traceback.clear_frames(error.__traceback__)
            self._fail(batch, error)
            if not isinstance(error, Exception):
                raise  # The batcher is being stopped: no batch has failed.
            self._metrics.failed_batches.labels("inference").inc()
            return
        seconds = perf_counter() - started
        self._seconds_per_text = seconds / len(batch)
        self._metrics.inference_seconds.observe(seconds)
        for text, row in zip(batch, rows, strict=True):
            request = text.request
            request.rows[text.index] = row
            request.batch_size = max(request.batch_size, len(batch))
            request.tokens += text.length
            if len(request.rows) == request.size:
                request.done.set()

    def _fail(self, batch: list[_Text], error: BaseException) -> None:
        requests = {text.request for text in batch}
        # With all their texts: nobody waits for the others any more.
        self._leave([text for text in self._waiting if text.request in requests])
        for request in requests:
            request.error = error
            request.done.set()

    def _retry_after(self) -> int:
        """In how many seconds what waits now has had its turn."""
        return max(1, math.ceil(len(self._waiting) * self._seconds_per_text))

    def _leave(self, texts: list[_Text]) -> int:
        """Take those that wait out of the queue; say how many these were."""
        waiting = [text for text in texts if text in self._waiting]
        for text in waiting:
            del self._waiting[text]
            self._metrics.queue_size.dec()
        return len(waiting)

    async def _in_thread(self, function: Callable[[T], R], argument: T) -> R:
        return await to_thread.run_sync(function, argument, limiter=self._one_at_a_time)


def max_batch_tokens(settings: Settings, device: torch.device) -> int:
    if settings.max_batch_tokens is not None:
        return settings.max_batch_tokens
    return MAX_BATCH_TOKENS_ON_CPU if device.type == "cpu" else MAX_BATCH_TOKENS


# --8<-- [start:provider]
async def get_batcher(
    settings: SettingsDep, encoder: EncoderDep, files: ModelFilesDep, metrics: MetricsDep
) -> AsyncIterator[Batcher]:
    """Run a batcher as long as its model lives; at its end it finishes what waits.

    First its model is tried: one that doesn't work, or has no room to work in, doesn't get as far
    as a request. And the first pass is slow.
    """
    limit = max_batch_tokens(settings, encoder.device)
    largest = min(settings.max_batch_size, max(1, limit // encoder.max_tokens))
    dimensions = await to_thread.run_sync(try_model, encoder, files, largest)

    batcher = Batcher(
        encoder,
        files,
        metrics,
        dimensions=dimensions,
        max_batch_size=settings.max_batch_size,
        max_batch_tokens=limit,
        batch_wait_timeout_s=settings.batch_wait_timeout_s,
        max_queue_size=settings.max_queue_size,
    )
    async with create_task_group() as tasks:
        tasks.start_soon(batcher.run)
        yield batcher
        batcher.close()


BatcherDep = Annotated[Batcher, Depends(get_batcher, scope="lifespan")]
# --8<-- [end:provider]
