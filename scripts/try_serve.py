"""Starts scripts/serve, waits until it says that it is ready, asks it, and stops it with Ctrl-C."""

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request

PATIENCE = 30 * 60  # seconds: the first start downloads a lot
READY = re.compile(r"Ready\. Open (http://[^/]+)/")


def ask(url: str) -> None:
    body = {"query": "How do I log in?", "candidates": ["Bake bread", "Reset my password"]}
    with urllib.request.urlopen(f"{url}/readyz", timeout=60) as answer:
        print("/readyz:", answer.status, answer.read().decode())
    request = urllib.request.Request(
        f"{url}/similarity", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        best = json.load(answer)["results"][0]["text"]
    print("/similarity:", best)
    if best != "Reset my password":
        sys.exit("That is not what the model says.")


def main() -> None:
    with subprocess.Popen(
        ["scripts/serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            asked = False
            for line in process.stdout:
                print(line, end="", flush=True)
                if match := READY.search(line):
                    ask(match[1])
                    process.send_signal(signal.SIGINT)
                    asked = True
        finally:
            timer.cancel()
            process.kill()
    if not asked or process.returncode != 0:
        sys.exit(f"scripts/serve: ready: {asked}, exit status {process.returncode}")


if __name__ == "__main__":
    main()
