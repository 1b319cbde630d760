"""Traced programs kept on disk, so that the next process neither traces nor lowers them again.

JAX's own cache keeps what its compiler makes, but Python still has to trace a solve, which takes a second or two each. Where that
cache is on (`jax_compilation_cache_dir`) and equinox leaves no callbacks in a program (`EQX_ON_ERROR=nan`, as the command line sets
both), `program` exports what it traced (`jax.export`) into the folder `programs` inside, under a digest of all that tracing could
have seen: the sources of this package, the versions below it, JAX's settings, shapes and dtypes of the arrays, and every other
value in the arguments. What cannot be named so (a function of yours, a class from outside) is traced anew, as under `jit`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pickle
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer

from odescale.cache.aside import Aside
from odescale.cache.place import PACKAGES, root, sources
from odescale.files import whole_file

F = TypeVar("F", bound=Callable[..., Any])

SETTINGS = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion",
    "jax_threefry_partitionable", "jax_default_prng_impl", "jax_debug_nans", "jax_debug_infs",
)  # fmt: skip

MOST_PROGRAMS = 512
"""Kept ready in one process; the least recently used goes first."""

MOST_VERSIONS = 8
"""Of the sources, whose programs stay on disk: with a new one that of the longest unused goes."""

_options: ContextVar[tuple[tuple[str, int | bool], ...]] = ContextVar("options of the compiler", default=())

_ready: list[OrderedDict] = []

PATIENCE = 2.0
"""Seconds of tracing and compiling before a line says so."""

tell: list[Callable[[str], None]] = []
"""Who is told, once; the command line puts itself here."""

made: Counter[str] = Counter()
"""Programs of each function, "module:name", traced or loaded in this process: a sweep or a repeated call must not add to it."""


_beside: dict[Path, str] = {}


def name_also(folder: Path) -> None:
    """Classes whose module lies in `folder` are named too, their programs kept until any source file there changes.

    For theories beside this package that call nothing further; functions of theirs in the arguments are still traced anew.
    """
    digest = hashlib.sha256()
    for source in sorted(folder.glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    _beside[folder] = digest.hexdigest()[:16]


class _Unnamed(Exception):
    """A value without a name that another process would give it too."""


class _Slot:
    """Place of an array in what a program returns."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def lightly() -> Iterator[None]:
    """Programs that the cache first sees in this block are compiled with XLA's least effort.

    Sooner done, and what comes out is slower: for one small solve, not for a thousand.
    """
    token = _options.set((("xla_backend_optimization_level", 0),))
    try:
        yield
    finally:
        _options.reset(token)


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Programs that the cache first sees in this block are compiled without XLA's own threads within an operation, on a CPU.

    Handing an operation on a few numbers to a second thread costs more than the operation.
    """
    token = _options.set((*_options.get(), ("xla_cpu_multi_thread_eigen", False)))
    try:
        yield
    finally:
        _options.reset(token)


def forget() -> None:
    """Drops every program that this process holds ready; those on disk stay."""
    for ready in _ready:
        ready.clear()


@contextmanager
def _announced() -> Iterator[None]:
    def speak() -> None:
        listeners, tell[:] = tell[:], []
        for say in listeners:
            say("compiling, once for each shape")

    timer = threading.Timer(PATIENCE, speak)
    timer.daemon = True
    if tell:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def folder() -> Path | None:
    """Where traced programs are kept; None where they are not.

    Without a cache of compiled programs, with callbacks in them, or with `ODESCALE_PROGRAMS=off`, for who runs a source text once.
    """
    kept, off = root(), os.environ.get("ODESCALE_PROGRAMS") == "off"
    if kept is None or off or os.environ.get("EQX_ON_ERROR") != "nan":
        return None
    return _used(kept / "programs" / sources())


@functools.cache
def _used(place: Path) -> Path | None:
    """The folder, as used now; None without what `jax.export` writes its files with."""
    if importlib.util.find_spec("flatbuffers") is None:
        return None
    with suppress(OSError):
        os.utime(place)
    return place


def program(function: F) -> F:
    """`equinox.filter_jit(function)`, whose traced programs are kept on disk where `folder` says so.

    Arrays are traced, all else is static. Under a transformation, and with arrays on several devices, it is `filter_jit` itself.
    """
    name = f"{function.__module__}:{function.__qualname__}"

    @functools.wraps(function)
    def traced(*arguments: Any, **named: Any) -> Any:
        made[name] += 1
        return function(*arguments, **named)

    plain = eqx.filter_jit(traced)
    ready: OrderedDict[tuple, Callable[..., Any] | None] = OrderedDict()
    _ready.append(ready)

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        given = (arguments, named)
        leaves = jax.tree_util.tree_leaves(given)
        if not _here(leaves) or (place := folder()) is None:
            return plain(*arguments, **named)
        arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
        try:
            key = _digest(name, given, arrays)
        except _Unnamed:
            return plain(*arguments, **named)
        # A compiled program runs on the device that it was compiled for.
        device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        path, key = place / f"{key.hex()}.bin", (key, _options.get(), device)
        if key in ready:
            ready.move_to_end(key)
        else:
            with _announced():
                ready[key] = _stored(path, function, given, arrays)
            made[name] += ready[key] is not None
            if len(ready) > MOST_PROGRAMS:
                ready.popitem(last=False)
        kept = ready[key]
        return plain(*arguments, **named) if kept is None else kept(arrays)

    return call  # pyright: ignore[reportReturnType]


def _here(leaves: list[Any]) -> bool:
    """Whether all arrays are concrete and on one device."""
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return False
    for leaf in leaves:
        if isinstance(leaf, Tracer) or (isinstance(leaf, jax.Array) and leaf.sharding.num_devices != 1):
            return False
    return True


def _stored(path: Path, function: Callable, given: Any, arrays: list[Any]) -> Callable[..., Any] | None:
    """The program under `path`, traced and written there if it is not; None where it cannot be exported."""
    with suppress(Exception):  # a file that cannot be read is written again
        skeleton, code = pickle.loads(path.read_bytes())
        return None if code is None else _callable(jax.export.deserialize(bytearray(code)), skeleton, arrays)
    dynamic, static = eqx.partition(given, eqx.is_array)
    _, tree = jax.tree_util.tree_flatten(dynamic)
    returned: list[Any] = []

    def of_arrays(*leaves: Any) -> list[Any]:
        arguments, named = eqx.combine(jax.tree_util.tree_unflatten(tree, leaves), static)
        out = function(*arguments, **named)
        results, rest = eqx.partition(out, eqx.is_array)
        flat, shape = jax.tree_util.tree_flatten(results)
        slots = jax.tree_util.tree_unflatten(shape, [_Slot(i) for i in range(len(flat))])
        returned[:] = [eqx.combine(slots, rest)]
        return flat

    try:
        exported = jax.export.export(jax.jit(of_arrays))(*arrays)
        skeleton, code = returned[0], exported.serialize()
        record = pickle.dumps((skeleton, bytes(code)))
    except _refusals():
        _write(path, pickle.dumps((None, None)))
        return None
    _write(path, record)
    return _callable(exported, skeleton, arrays)


def _refusals() -> tuple[type[Exception], ...]:
    """What `jax.export` and `pickle` say of what they cannot keep: callbacks, kernels without a stable name, local classes."""
    return (NotImplementedError, ValueError, pickle.PicklingError, AttributeError, TypeError)


def _callable(exported: Any, skeleton: Any, arrays: list[Any]) -> Callable[..., Any]:
    options: Any = dict(_options.get())
    run = jax.jit(exported.call).lower(*arrays).compile(compiler_options=options)

    def call(arrays: list[Any]) -> Any:
        results = run(*arrays)
        return jax.tree_util.tree_map(
            lambda slot: results[slot.number] if isinstance(slot, _Slot) else slot,
            skeleton,
            is_leaf=lambda x: isinstance(x, _Slot),
        )

    return call


def _write(path: Path, contents: bytes) -> None:
    """Whole or not at all; a folder that cannot be written to costs time in the next process, nothing else."""
    with suppress(OSError):
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            _forget_old(path.parent.parent)
        with whole_file(path) as stream:
            stream.write(contents)


def _forget_old(kept: Path) -> None:
    """Removes the programs of all but the last versions used, in the folder `kept` of all of them."""
    with suppress(OSError):
        for stamped in sorted(kept.iterdir(), key=lambda path: -path.stat().st_mtime)[MOST_VERSIONS:]:
            for path in stamped.iterdir():
                path.unlink(missing_ok=True)
            stamped.rmdir()


def _digest(name: str, given: Any, arrays: list[Any]) -> bytes:
    settings = [getattr(jax.config, setting, None) for setting in SETTINGS]
    parts = [name, repr(settings), jax.default_backend()]
    _name(given, parts, {id(array) for array in arrays})
    return hashlib.sha256("\0".join(parts).encode()).digest()


def _name(value: Any, parts: list[str], traced: set[int]) -> None:
    """Appends to `parts` what makes `value` another argument than its neighbours."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        shape = f"{type(value).__name__}{np.shape(value)}{value.dtype}{getattr(value, 'weak_type', False)}"
        if id(value) not in traced:
            if value.dtype == object or not isinstance(value, np.ndarray | np.generic):
                raise _Unnamed
            shape += hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        parts.append(shape)
    elif value is None or isinstance(value, str | bytes | bool | int | float | complex) and not isinstance(value, Enum):
        parts.append(f"{type(value).__name__} {value!r}")
    elif isinstance(value, type | FunctionType | ModuleType):
        parts.append(_place(value))
        if isinstance(value, FunctionType):
            _name_closure(value, parts, traced)
    elif isinstance(value, MethodType):
        _name((value.__func__, value.__self__), parts, traced)
    elif isinstance(value, functools.partial):
        parts.append("partial")
        _name((value.func, value.args, value.keywords), parts, traced)
    elif isinstance(value, Aside):
        parts.append("aside")
    elif isinstance(value, np.dtype):
        parts.append(f"dtype {value}")
    elif isinstance(value, Enum):
        parts.append(f"{_place(type(value))} {value.name}")
    elif isinstance(value, list | tuple):
        parts.append(f"{_place(type(value))} {len(value)}")
        for item in value:
            _name(item, parts, traced)
    elif isinstance(value, dict):
        parts.append(f"{_place(type(value))} {len(value)}")
        for key, item in value.items():
            _name(key, parts, traced)
            _name(item, parts, traced)
    elif isinstance(value, eqx.Module):
        parts.append(f"{_place(type(value))} {len(vars(value))}")
        for key, item in sorted(vars(value).items()):  # in order: a copy may have set its fields in another
            parts.append(key)
            _name(item, parts, traced)
    elif callable(value) and getattr(value, "__module__", "").split(".")[0] in (*PACKAGES, "builtins"):
        parts.append(_place(value))  # jitted functions and ufuncs of the packages below
    else:
        raise _Unnamed(type(value))


def _place(value: Any) -> str:
    """module:name of a class, function or module whose source is in the key: of this package, those below it, or Python itself."""
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    stamp = ""
    if module.split(".")[0] not in (*PACKAGES, "odescale", "builtins", "collections"):
        file = getattr(sys.modules.get(module), "__file__", None)
        if not isinstance(value, type) or file is None or Path(file).parent not in _beside:
            raise _Unnamed(module, value)
        stamp = _beside[Path(file).parent] + " "
    if isinstance(value, ModuleType):
        return f"module {module}"
    qualified = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if qualified is None:
        raise _Unnamed
    if isinstance(value, FunctionType):
        return f"{module}:{qualified}"
    found: Any = sys.modules.get(module)
    for name in qualified.split("."):
        found = getattr(found, name, None)
    if found is not value:
        raise _Unnamed  # a class made inside a function, or one that has been replaced
    return f"{stamp}{module}:{qualified}"


def _name_closure(value: FunctionType, parts: list[str], traced: set[int]) -> None:
    code = value.__code__
    parts.append(
        f"{code.co_filename.rsplit('/', 1)[-1]}:{code.co_firstlineno} {hashlib.sha256(code.co_code).hexdigest()}"
    )
    _name((value.__defaults__, value.__kwdefaults__), parts, traced)
    for cell in value.__closure__ or ():
        _name(cell.cell_contents, parts, traced)
