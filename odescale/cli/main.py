"""Entry point of `odescale`: exit status 0 on success only, 2 for bad input, 1 when a computation failed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from odescale.cli.arguments import build_parser
from odescale.errors import InputError, OdescaleError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; errors become one line on stderr, never a traceback."""
    options = build_parser().parse_args(arguments)
    try:
        import jax

        # The library leaves this setting alone; the command line is a program of ours, so it decides here.
        jax.config.update("jax_enable_x64", True)
        from odescale.cli.commands import COMMANDS

        return COMMANDS[options.command](options)
    except InputError as error:
        return _fail(error, 2)
    except OdescaleError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("stopped; the same command with the same --checkpoint goes on where it was", 130)
    except BrokenPipeError:
        return 1
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or ''}", 2)


def _fail(error: object, status: int) -> int:
    print(f"odescale: {' '.join(str(error).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
