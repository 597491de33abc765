import os

workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
worker_class = "uvicorn_worker.UvicornWorker"

# From SIGTERM to SIGKILL: the shutdown delay, the requests that run, the release of the model.
graceful_timeout = 60

# The workers share the cores out. It counts only before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

logconfig_json = "docs_src/deploy/logging.json"
