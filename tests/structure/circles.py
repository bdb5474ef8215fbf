"""Repository check: circles of imports among the modules of a package. `make lint` runs it.

    python tests/structure/circles.py [PACKAGE]

It prints each circle and exits 1 if there is one. Imports for type checkers alone count as well, because
people follow them when they read.
"""

import sys

import grimp


def imports_of(package: str) -> dict[str, set[str]]:
    """Return the modules that each module of a package imports, the package itself left out."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=False)
    modules = graph.modules - {package}
    return {name: graph.find_modules_directly_imported_by(name) & modules for name in modules}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the circles, the largest first: modules each of which leads to each of the others."""
    reached = {name: _reached_from(name, imports) for name in imports}
    found = {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in imports
        if name in reached[name]
    }
    return sorted((sorted(circle) for circle in found), key=lambda circle: (-len(circle), circle))


def _reached_from(start: str, imports: dict[str, set[str]]) -> set[str]:
    """Return the modules that a module imports, at once or through others."""
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def main() -> int:
    """Print the circles of the package that the command line names; return the exit status."""
    package = sys.argv[1] if len(sys.argv) > 1 else "aif_jax"
    found = circles(imports_of(package))
    for circle in found:
        names = ", ".join(name.removeprefix(f"{package}.") for name in circle)
        print(f"{len(circle)} modules: {names}")
    print(f"{len(found)} circles, the largest of {max(map(len, found), default=0)} modules")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
