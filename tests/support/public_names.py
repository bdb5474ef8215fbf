"""Public names: those that a package's `__init__` exports or makes."""

import ast
import importlib
from pathlib import Path

import aif_jax

PACKAGE = Path(aif_jax.__file__).parent

PACKAGES = sorted(
    ".".join(("aif_jax", *path.parent.relative_to(PACKAGE).parts)) for path in PACKAGE.rglob("__init__.py")
)

BY_MODULE = ("aif_jax.integrations", "aif_jax.observe")
"""Packages whose modules are public by themselves, since each needs an extra of its own."""


def exported(package: str) -> set[str]:
    """Return the names that a package exports: `__all__`, or its imports `X as X`."""
    module = importlib.import_module(package)
    if hasattr(module, "__all__"):
        return {*module.__all__, *getattr(module, "LATER", ())}
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.asname
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    made = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
    return imported | made
