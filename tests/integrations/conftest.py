"""Tests of integrations are collected where what they integrate is there to run against."""

import importlib.util
import shutil

collect_ignore = []
if shutil.which("redis-server") is None or importlib.util.find_spec("redis") is None:
    collect_ignore.append("test_redis_server.py")
if importlib.util.find_spec("ray") is None:
    collect_ignore.append("test_ray.py")
