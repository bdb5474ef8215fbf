"""Calls that write files past `aif_jax.files`, found in a module's source."""

import ast
from collections.abc import Iterator

METHODS = {
    "write_text", "write_bytes", "touch", "tofile", "to_parquet", "to_csv", "savefig", "rename",
    "symlink_to", "hardlink_to", "rmtree",
}  # fmt: skip
"""Methods and functions, of whatever object, that write, rename or remove whole trees."""

FUNCTIONS = {
    "os.replace", "os.link", "os.symlink", "os.mkfifo", "os.mknod", "os.truncate", "json.dump", "pickle.dump",
    "pq.write_table", "np.save", "np.savez", "np.savez_compressed", "np.savetxt", "numpy.save", "numpy.savez",
    "shutil.move", "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree", "save_file",
    "tempfile.mkstemp", "tempfile.mkdtemp",
}  # fmt: skip
"""Functions that write, by the name under which modules import them."""

FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"}


def plain_writes(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each call that writes a file, or a memory map that does.

    >>> list(plain_writes("Path('a').write_text('b')"))
    [(1, "Path('a').write_text('b')")]
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _writes(node):
            yield node.lineno, ast.unparse(node)


def _writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if last in METHODS or name in FUNCTIONS:
        return True
    if last == "open":
        named = {node.attr for node in ast.walk(call) if isinstance(node, ast.Attribute)}
        return bool(named & FLAGS) or any(set(mode) & set("wax+") for mode in _modes(call))
    return last in ("memmap", "open_memmap") and any(set(mode) & set("w+") for mode in _modes(call))


def _modes(call: ast.Call) -> Iterator[str]:
    """Yield constants that may be the mode of an opened file."""
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    for one in given:
        for node in ast.walk(one):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) <= 3:
                yield node.value
