"""Shared settings of the tests: 64-bit numbers on, as a user of the library switches them on; compiled code dropped in time."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import equinox
import jax
import jaxtyping
import pytest

from odescale.cache.programs import forget, name_also

jax.config.update("jax_enable_x64", True)
# Problems with an exact solution are classes of the tests: their solves are kept like those of the library's own systems.
name_also(Path(__file__).parent)

# Linux gives a process 65530 memory mappings (vm.max_map_count). XLA's compiler for CPUs takes a few for every function
# that it compiles and keeps them as long as the function is cached; where none is left it ends in a segmentation fault.
# A mapping comes with some 120 kB of programs and traces: two processes stay within 6 GB.
MOST_MAPPINGS = 18_000

# Tracing makes millions of small objects that live as long as their program: at Python's own threshold, 700 new objects, the
# collector walks them over and over and takes an eighth of a run. Circles of dropped programs are collected where they are dropped.
gc.set_threshold(100_000, 20, 100)


def pytest_collection_finish() -> None:
    """Leave out of every collection what importing and collecting made: it stays to the end."""
    gc.collect()
    gc.freeze()


def memory_mappings() -> int:
    """Count the memory mappings of this process; 0 where the system does not list them (anywhere but on Linux)."""
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


@pytest.fixture(autouse=True)
def _bad_input_reaches_the_library(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of refusals hand over what no annotation allows: there the library's own checks speak, not those of the test run."""
    code = getattr(request.function, "__code__", None)
    expects = code is not None and "raises" in code.co_names
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", expects)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled_functions() -> Iterator[None]:
    """Forget what one module compiled once it is much, so that a process can run all of them."""
    yield
    if memory_mappings() > MOST_MAPPINGS:
        equinox.clear_caches()
        jax.clear_caches()
        forget()
        gc.collect()


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects one entry for every program that JAX lowers within, whether its compiled code is found on disk or not."""
    found: list[str] = []

    def heard(event: str, duration_secs: float, **more: str | int) -> None:
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            found.append(str(more.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command of `odescale` in this process: (exit status, stdout, stderr)."""
    from odescale.cli.main import main

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return call
