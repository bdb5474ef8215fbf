"""A redis-server of a test's own."""

import contextlib
import socket
import subprocess
import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def connect(port, **options):
    return redis.Redis(
        port=port, socket_timeout=10, socket_connect_timeout=10, retry=Retry(NoBackoff(), 0), **options
    )


@contextlib.contextmanager
def serve(folder, port=None, save=""):
    """Start a server on a port, or a free one, wait for it, and stop it."""
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": save, "appendonly": "no"}
    command = [
        "redis-server",
        *(str(part) for name, value in options.items() for part in (f"--{name}", value)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with connect(port) as client:
            for _ in range(200):
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.05)
            client.ping()
        yield port, process
    finally:
        process.terminate()
        process.wait(10)
