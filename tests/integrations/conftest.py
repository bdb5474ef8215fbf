"""Tests of integrations are collected where the software that they need is installed."""

import importlib.util
import shutil

collect_ignore: list[str] = []
if shutil.which("redis-server") is None or importlib.util.find_spec("redis") is None:
    collect_ignore += ["test_redis_server.py", "test_nearline_page.py", "test_poisoned_streams.py"]
if importlib.util.find_spec("ray") is None:
    collect_ignore.append("test_ray.py")
