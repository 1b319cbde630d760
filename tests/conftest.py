"""Shared settings of the tests: 64-bit numbers on, as a user of the library switches them on."""

import jax

jax.config.update("jax_enable_x64", True)
