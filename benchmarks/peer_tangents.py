"""The empirical kernel of neural-tangents, in a process of its own: it imports under older JAX only, so without odescale.

    PYTHON peer_tangents.py FILE.npz

FILE holds x and the weights w0, b0, ... of a network of tanh layers with one output. For every line "IMPLEMENTATION" on stdin the
kernel is computed once; the answer is a line of JSON, {"cpu": seconds, "file": where the kernel was written}, or {"failed": why}.
"""

from __future__ import annotations

import json
import sys
import time


def main(path: str) -> None:
    """Answers until stdin ends."""
    import jax
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    try:
        import neural_tangents as nt
    except Exception as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {error}".replace("\n", " ")}), flush=True)
        return

    given = np.load(path)
    layers = [(jnp.asarray(given[f"w{i}"]), jnp.asarray(given[f"b{i}"])) for i in range((len(given.files) - 1) // 2)]
    x = jnp.asarray(given["x"])

    def network(layers, x):
        for w, b in layers[:-1]:
            x = jnp.tanh(x @ w.T + b)
        return x @ layers[-1][0].T + layers[-1][1]

    known = {}
    print(json.dumps({"jax": jax.__version__, "neural-tangents": nt.__version__}), flush=True)
    for line in sys.stdin:
        way = line.strip()
        began = time.process_time()
        try:
            if way not in known:
                implementation = nt.NtkImplementation[way]
                kernel = nt.empirical_ntk_fn(network, trace_axes=(), vmap_axes=0, implementation=implementation)
                known[way] = jax.jit(lambda x, layers, kernel=kernel: kernel(x, None, layers)[..., 0, 0])
            found = jax.block_until_ready(known[way](x, layers))
        except Exception as error:
            print(json.dumps({"failed": f"{type(error).__name__}: {error}".splitlines()[0]}), flush=True)
            continue
        cpu = time.process_time() - began
        np.save(f"{path}.{way}.npy", np.asarray(found))
        print(json.dumps({"cpu": cpu, "file": f"{path}.{way}.npy"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
