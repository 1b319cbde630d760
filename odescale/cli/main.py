"""Entry point of `odescale`: exit status 0 on success only, 2 for bad input, 1 when a computation failed."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from odescale.cli.arguments import COMMANDS, build_parser
from odescale.errors import InputError, OdescaleError
from odescale.plain_text import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; an error becomes one line on stderr, with its traceback above it under --debug.

    Without `arguments`, as the program that it then is, it keeps what it compiles (`odescale.cache`) unless --no-cache says not to.
    """
    options = build_parser().parse_args(arguments)
    try:
        command = COMMANDS[options.command]
        if command.jax:
            _prepare(cached=None if arguments is not None else not options.no_cache)
        module, _, function = command.where.partition(":")
        return getattr(import_module(f"odescale.cli.{module}"), function)(options)
    except KeyboardInterrupt:
        again = "; the same command with the same --checkpoint goes on where it was" if "checkpoint" in options else ""
        return _fail(f"stopped{again}", 130)
    except BrokenPipeError:  # whoever reads has enough; what is still in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        if isinstance(error, OdescaleError):
            return _fail(error, 2 if isinstance(error, InputError) else 1)
        if isinstance(error, OSError):
            return _fail(f"{error.strerror or error}: {error.filename or ''}", 2)
        words = one_line(str(error))[:300]
        return _fail(
            f"internal error: {type(error).__name__}: {words}; please report it with the command and --debug", 1
        )


def _prepare(cached: bool | None) -> None:
    """JAX's settings. The library leaves them alone; the command line is a program of ours, so it decides here.

    `cached`: keep programs and tables on disk, or do not; None leaves that to the process that calls.
    """
    # Before NumPy is there. Its products are small here, and a second thread waits for them by spinning, which
    # multiplies the CPU time of a table of the peaked theory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import jax

    from odescale.cache.place import default_folder, switch_off, switch_on

    jax.config.update("jax_enable_x64", True)
    if cached is None:
        return
    if cached:
        switch_on(default_folder())
    else:
        switch_off()
    from odescale.cache import programs  # after the switch: it imports equinox

    programs.tell[:] = [lambda words: print(f"odescale: {words}", file=sys.stderr, flush=True)]


def _fail(error: object, status: int) -> int:
    print(f"odescale: {one_line(str(error))}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
