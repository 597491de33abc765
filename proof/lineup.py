"""The servers that take part, as they were seen to behave: with releases that the report names."""

from dataclasses import replace

from .ray import RayServer
from .servers import Limit, Server

_FINISHED = "Finished server process"
UVICORN = Server(
    "uvicorn",
    "uvicorn",
    "uvicorn --fd {fd}",
    codes={"term": {-15}, "int": {0}, "start failed": {3}, "stop failed": {-15}, "killed": {-9}},
    last={
        "term": _FINISHED,
        "int": _FINISHED,
        "start failed": "Application startup failed. Exiting.",
        "stop failed": _FINISHED,
        "killed": "",
    },
    variants={
        "reload": {
            "command": "uvicorn --fd {fd} --reload --reload-dir {directory}",
            "codes": {"term": {0}},
            "last": {"term": "Stopping reloader process"},
            "reload": "a changed file",
        }
    },
)
_STOPPING = "Stopping parent process"
UVICORN_2 = Server(
    "uvicorn-2",
    "uvicorn",
    "uvicorn --fd {fd} --workers 2 --timeout-worker-healthcheck 30",
    workers=2,
    codes={"term": {0}, "int": {0}, "start failed": {0}, "stop failed": {0}},
    last=dict.fromkeys(["term", "int", "start failed", "stop failed"], _STOPPING),
    passes_on="Waiting for child process",
    replaces=True,
)
_MASTER = "Shutting down: Master"
GUNICORN = Server(
    "gunicorn",
    "gunicorn",
    "gunicorn --worker-class uvicorn_worker.UvicornWorker --workers 2 --graceful-timeout 120"
    " --timeout 120 --bind fd://{fd}",
    workers=2,
    needs=("uvicorn", "uvicorn-worker"),
    codes={"term": {0}, "int": {0}, "start failed": {1, 3}, "stop failed": {0}},
    last={
        "term": _MASTER,
        "int": _MASTER,
        "start failed": "Worker failed to boot",
        "stop failed": _MASTER,
    },
    passes_on="Handling signal",
    replaces=True,
)
_LOST = Limit(
    frozenset({"no lost request"}),
    "A request that arrives on an idle connection while the server closes that is begun, and its"
    " answer is thrown away. So may be a WebSocket.",
    always=False,
    may=frozenset({"no lost websocket"}),
)
HYPERCORN = Server(
    "hypercorn",
    "hypercorn",
    "hypercorn --graceful-timeout 30 --bind fd://{fd}",
    # whatever happens; see `_join_exited` in its run.py, whose second call forgets the first's
    codes=dict.fromkeys(["term", "int", "start failed", "stop failed", "killed"], (0,)),
    last=dict.fromkeys(["term", "int", "start failed", "stop failed", "killed"], ""),
    limits={"SIGTERM under load": _LOST, "reload": _LOST},
)
_SILENT = Limit(
    frozenset({"log"}),
    "The error of a lifespan that fails while it stops is neither logged nor in the exit code.",
)
HYPERCORN_TRIO = replace(
    HYPERCORN,
    name="hypercorn-trio",
    needs=("trio",),
    command="hypercorn --worker-class trio --graceful-timeout 30 --bind fd://{fd}",
    limits={
        **HYPERCORN.limits,
        "stop fails": _SILENT,
        "stop hangs": _SILENT,
        "value dies": _SILENT,
    },
)
_BROKEN = Limit(
    frozenset({"no lost websocket"}),
    "WebSockets that are open when a worker ends are cut off, without a close frame, and the code"
    " that serves them may stand still at its `await` for ever.",
    always=False,
    may=frozenset({"endpoints end"}),
)
_BYE = "Granian shutdown completed, see ya!"
GRANIAN = Server(
    "granian",
    "granian",
    "granian --interface asgi --workers 2 --host 127.0.0.1 --port {port}",
    workers=2,
    codes={"term": {0}, "int": {0}, "start failed": {1}, "stop failed": {0}},
    last=dict.fromkeys(["term", "int", "start failed", "stop failed"], _BYE),
    passes_on="Shutting down granian",
    replaces=True,
    variants={
        "worker killed": {
            "command": "granian --interface asgi --workers 2 --respawn-failed-workers"
            " --host 127.0.0.1 --port {port}"
        }
    },
    limits={
        "SIGINT in the start": Limit(
            frozenset({"comes"}),
            "Ctrl-C reaches a worker twice, as SIGINT and as the SIGTERM that the main process"
            " passes on. The second signal during a start blocks it for good, also without FastAPI."
            " To the main process alone, SIGINT does what SIGTERM does.",
        ),
        "SIGTERM under load": _BROKEN,
        "reload": _BROKEN,
    },
)
RAY = RayServer(
    "ray",
    "ray",
    "",
    workers=2,
    one_at_a_time=True,
    codes={"term": {0}, "int": {0}, "start failed": {1}, "stop failed": {0}},
    last=dict.fromkeys(["term", "int", "start failed", "stop failed"], ""),
    replaces=True,
    reload="another deploy",
)
SERVERS: tuple[Server, ...] = (
    UVICORN,
    UVICORN_2,
    GUNICORN,
    HYPERCORN,
    HYPERCORN_TRIO,
    GRANIAN,
    RAY,
)
