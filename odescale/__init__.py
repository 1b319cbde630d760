"""Ordinary differential equations for learning dynamics: derive them, integrate them, compare them with real training.

The public names load on first use: importing odescale imports neither JAX nor sympy and changes no setting of JAX. They stand
in `__init__.pyi`; what is more special is in the namespaces `spectra`, `schedules`, `networks`, `laws`, `frontier`, `linear`,
`kernels`, `one_third`, `two_tokens`, `language`, `logs`, `plot`, `symbolic` and, by import only, `resources`, `rollouts`.
"""

from odescale._door import open_door

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = open_door(__name__, __file__)
