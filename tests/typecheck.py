"""The checker of annotations in test runs: types and array shapes of every call in `odescale` (jaxtyping with beartype)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as in every other checker
