"""Stage programs: exported once, loaded without the model's code, compiled ahead for each shape.

A program takes flat arrays only: first the weights that it uses, in the order of `weights.safetensors`
(sorted by name), then its inputs, sorted by path; it returns flat arrays sorted by path. A path is the keys
of nested dictionaries joined by ``/`` (``rows/h``). The signature beside each program names them all, so a
program can be called from anything that runs StableHLO.
"""

import contextlib
import dataclasses
import hashlib
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import export

from aif_jax.bundle.compilation_cache import CompilationCache
from aif_jax.errors import BundleError, ConfigError
from aif_jax.types import named_dtype
from aif_jax.uninterrupted import uninterrupted

Tree = Mapping[str, Any]


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by path, sorted by path."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}/")
        else:
            leaves[prefix + key] = value
    return dict(sorted(leaves.items()))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries from leaves by path: the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


@dataclasses.dataclass(frozen=True)
class Operand:
    """One array that goes into or comes out of a program.

    Attributes:
        path: its name, see the module.
        dtype: name of its dtype.
        shape: sizes; a string is the name of a symbolic dimension, or an expression over such names.
    """

    path: str
    dtype: str
    shape: tuple[int | str, ...]

    def at(self, dims: Mapping[str, int]) -> jax.ShapeDtypeStruct:
        """Return the concrete shape and dtype for given sizes of the symbolic dimensions."""
        return jax.ShapeDtypeStruct(
            tuple(size if isinstance(size, int) else dims[size] for size in self.shape),
            named_dtype(self.dtype),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs and outputs of a program.

    Attributes:
        weights: names of the weights that it uses, in operand order.
        inputs: the operands after the weights.
        outputs: the arrays that it returns.
        dims: names of its symbolic dimensions.
    """

    weights: tuple[str, ...]
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    dims: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Signature":
        """Read `to_json` output back."""

        def operands(entries: Sequence[Mapping[str, Any]]) -> tuple[Operand, ...]:
            return tuple(Operand(e["path"], e["dtype"], tuple(e["shape"])) for e in entries)

        return cls(
            weights=tuple(values["weights"]),
            inputs=operands(values["inputs"]),
            outputs=operands(values["outputs"]),
            dims=tuple(values["dims"]),
        )


Export: TypeAlias = Callable[[Sequence[str], Sequence[str]], tuple[bytes, Signature]]
"""The serialised program and its signature, for platforms (``cpu``, ``cuda``, ``rocm``, ``tpu``) and the
names of the custom calls that the program may hold."""


def exporter(
    function: Callable[[dict[str, Any], dict[str, Any]], Tree],
    weights: Mapping[str, Any],
    inputs: Tree,
    *,
    dims: Sequence[str],
) -> Export:
    """Return what exports ``function(weights, inputs)`` for symbolic or fixed shapes, tracing it once.

    Args:
        function: pure and jittable, from nested dictionaries to nested dictionaries.
        weights: arrays or shapes by name: those that the function reads.
        inputs: nested dictionaries of ``jax.ShapeDtypeStruct``, whose sizes may be symbolic.
        dims: names that symbolic dimensions may have; those that no input has are left out.
    """
    names = sorted(weights)
    leaves = flatten(inputs)
    outputs: dict[str, Any] = {}

    def flat(weight_operands: tuple[Any, ...], input_operands: tuple[Any, ...]) -> tuple[Any, ...]:
        given = dict(zip(names, weight_operands, strict=True))
        result = flatten(function(given, unflatten(dict(zip(leaves, input_operands, strict=True)))))
        outputs.clear()
        outputs.update(result)
        return tuple(result.values())

    operands = tuple(_operand(path, leaf) for path, leaf in leaves.items())
    sizes = {size for operand in operands for size in operand.shape}
    jitted = jax.jit(flat)

    def export_for(platforms: Sequence[str], custom_calls: Sequence[str]) -> tuple[bytes, Signature]:
        checks = [export.DisabledSafetyCheck.custom_call(name) for name in custom_calls]
        with _no_locations():
            exported = export.export(jitted, platforms=platforms, disabled_checks=checks)(
                tuple(jax.ShapeDtypeStruct(weights[name].shape, weights[name].dtype) for name in names),
                tuple(leaves.values()),
            )
        signature = Signature(
            weights=tuple(names),
            inputs=operands,
            outputs=tuple(
                _operand(path, aval) for path, aval in zip(outputs, exported.out_avals, strict=True)
            ),
            dims=tuple(name for name in dims if name in sizes),
        )
        return bytes(exported.serialize()), signature

    return export_for


def exported_again(program: "Program", custom_calls: Sequence[str]) -> bytes:
    """Return a program written by the jax that is installed now, which must still read it.

    Args:
        program: with any signature, which stays.
        custom_calls: names of the custom calls that it may hold.

    Raises:
        BundleError: this jax cannot read the program.
    """
    old = program.exported
    operands, _ = jax.tree.unflatten(old.in_tree, old.in_avals)
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in custom_calls]
    with _no_locations():
        new = export.export(jax.jit(old.call), platforms=old.platforms, disabled_checks=checks)(*operands)
    return bytes(new.serialize())


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
    """Keep source locations out of programs: the same model gives the same bytes wherever it is exported.

    JAX has this setting for the whole process only.
    """
    name = "jax_traceback_in_locations_limit"
    limit = jax.config.values[name]
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)


def _operand(path: str, leaf: Any) -> Operand:
    shape = tuple(size if isinstance(size, int) else str(size) for size in leaf.shape)
    return Operand(path, np.dtype(leaf.dtype).name, shape)


class Call:
    """A program compiled for one shape, holding its weights: ``call(inputs) -> outputs``, never compiling."""

    __slots__ = ("_compiled", "_paths", "_results", "_weights", "program")

    def __init__(self, program: "Program", compiled: Any, weights: tuple[Any, ...]):
        self.program = program
        self._compiled = compiled
        self._weights = weights
        self._paths = tuple(operand.path for operand in program.signature.inputs)
        self._results = tuple(operand.path for operand in program.signature.outputs)

    def __call__(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """Run the program.

        Args:
            leaves: one array for each input, by path; others are ignored.

        Returns:
            One array for each output, by path. Execution may still be under way: arrays passed in must not be
            written to until the results are ready.

        Raises:
            TypeError: a shape or dtype is not the compiled one (JAX's own check).
        """
        return dict(zip(self._results, self.run([leaves[path] for path in self._paths]), strict=True))

    def run(self, operands: Sequence[Any]) -> tuple[Any, ...]:
        """Run the program on arrays in the order of the signature's inputs; return those of its outputs."""
        return self._compiled(self._weights, tuple(operands))


class Program:
    """One program of a bundle, deserialised; compile it with `at`."""

    def __init__(self, name: str, kind: str, content: bytes, signature: Signature):
        self.name = name
        self.kind = kind
        self.signature = signature
        self.digest = hashlib.sha256(content).hexdigest()
        self._content = content
        self._exported: export.Exported | None = None
        self._lock = threading.Lock()
        self._held: dict[Any, Any] = {}

    def at(self, weights: Mapping[str, Any], cache: CompilationCache | None = None, /, **dims: int) -> Call:
        """Return the program compiled for the given sizes, compiling at most once in this process.

        Sizes of dimensions that the program does not have are ignored. Executables are shared between bundles
        whose programs have the same bytes: weights are operands. One that this process does not have is
        looked up in ``cache``, and saved there once it is compiled.

        Raises:
            ConfigError: a symbolic dimension was not given, or violates the program's constraints.
            BundleError: the program cannot be read or compiled by this jax.
        """
        if missing := set(self.signature.dims) - set(dims):
            raise ConfigError(f"program {self.name}: sizes {sorted(missing)} were not given.")
        key = (self.digest, jax.default_backend(), tuple(dims[name] for name in self.signature.dims))
        compiled = _EXECUTABLES.once(key, lambda: self._load_or_compile(weights, cache, dims), self._held)
        return Call(self, compiled, tuple(weights[name] for name in self.signature.weights))

    def zeros(self, dims: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return zeros for every input, by path, to run it once before somebody has to wait for it."""
        specs = {operand.path: operand.at(dims) for operand in self.signature.inputs}
        return {path: np.zeros(spec.shape, spec.dtype) for path, spec in specs.items()}

    def _load_or_compile(
        self, weights: Mapping[str, Any], cache: CompilationCache | None, dims: Mapping[str, int]
    ) -> tuple[Any, bool]:
        """Return the executable, and whether it came from the cache."""
        if cache is None:
            return self._compile(weights, dims), False
        sizes = "".join(f"-{name}{dims[name]}" for name in self.signature.dims)
        entry = f"{self.name}{sizes}-{self.digest[:32]}"
        given = tuple(weights[name] for name in self.signature.weights)
        operands = given, tuple(self.zeros(dims).values())
        in_tree = jax.tree.structure((operands, {}))
        out_tree = jax.tree.structure((0,) * len(self.signature.outputs))

        def run(compiled: Any) -> None:
            jax.block_until_ready(compiled(*operands))

        compiled = cache.load(entry, in_tree, out_tree, run)
        if compiled is not None:
            return compiled, True
        compiled = self._compile(weights, dims)
        cache.save(entry, compiled, in_tree, out_tree, run)
        return compiled, False

    @property
    def exported(self) -> export.Exported:
        """The program as JAX has it, to be called inside another traced function: weights, then inputs.

        Raises:
            BundleError: this jax cannot read it.
        """
        with self._lock:
            if self._exported is None:
                try:
                    self._exported = export.deserialize(bytearray(self._content))
                except Exception as error:
                    raise BundleError(
                        f"program {self.name}.{self.kind}: jax {jax.__version__} cannot read it "
                        f"({_first_line(error)}); rebuild the programs with Bundle.refresh."
                    ) from error
            return self._exported

    def _compile(self, weights: Mapping[str, Any], dims: Mapping[str, int]) -> Any:
        exported = self.exported
        weight_specs = tuple(
            jax.ShapeDtypeStruct(weights[name].shape, weights[name].dtype) for name in self.signature.weights
        )
        input_specs = tuple(operand.at(dims) for operand in self.signature.inputs)
        try:
            return jax.jit(exported.call).lower(weight_specs, input_specs).compile()
        except Exception as error:
            raise BundleError(
                f"program {self.name}.{self.kind}: cannot be compiled for {dict(dims)} on "
                f"{jax.default_backend()} with jax {jax.__version__} ({_first_line(error)}); "
                "check the sizes, or rebuild the programs with Bundle.refresh."
            ) from error


class _Executables:
    """Compiled programs of this process by (program hash, backend, sizes), as long as somebody holds them.

    A vocabulary that grows with each training makes other programs: those of bundles that are gone must not
    stay.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        self._compiled: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        self.compilations = 0
        self.loads = 0

    def once(self, key: Any, make: Callable[[], tuple[Any, bool]], held: dict[Any, Any]) -> Any:
        """Return the executable of a key, and put it into ``held``, which keeps it alive.

        ``make`` returns it and whether it was loaded, not compiled.
        """
        compiled = self._compiled.get(key)
        if compiled is None:
            return uninterrupted(lambda: self._made(key, make, held))
        held[key] = compiled
        return compiled

    def _made(self, key: Any, make: Callable[[], tuple[Any, bool]], held: dict[Any, Any]) -> Any:
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            compiled = self._compiled.get(key)
            if compiled is None:
                compiled, loaded = make()
                with self._guard:
                    self._compiled[key] = compiled
                    self.loads += loaded
                    self.compilations += not loaded
            held[key] = compiled
            return compiled

    def __len__(self) -> int:
        return len(self._compiled)


_EXECUTABLES = _Executables()


def compiled_once(key: Hashable, compile_it: Callable[[], Any], held: dict[Any, Any]) -> Any:
    """Return this process's executable under a key, compiling it if there is none yet, counted.

    Args:
        key: everything that the executable depends on.
        compile_it: makes the executable; called in a thread of its own, see `aif_jax.uninterrupted`, at most
            once at a time for a key.
        held: of the caller; keeps the executable alive, which is gone with the last one that does.
    """
    return _EXECUTABLES.once(key, lambda: (compile_it(), False), held)


def executables() -> int:
    """Return the number of compiled programs that somebody in this process holds."""
    return len(_EXECUTABLES)


def compilations() -> int:
    """Return the number of programs that this process has compiled; constant while requests are served."""
    return _EXECUTABLES.compilations


def loads() -> int:
    """Return the number of programs that this process has read from a compilation cache instead."""
    return _EXECUTABLES.loads


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
