"""Synthetic languages whose next-token distribution is known for every context, and so is their entropy."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from odescale.errors import InputError, whole

ENUMERABLE = 2**16  # contexts up to which the stationary distribution is solved for


class Grammar(eqx.Module):
    r"""p(x_{t+1} = k | context) = softmax(b f_t)_k,   f_t = sum_{j<n} w_j U e_{x_{t-j}},   w_j ~ memory^j, sum_j w_j^2 = 1.

    A Markov chain of order n over V tokens. U (V, V) is sqrt(V) times a random orthogonal matrix with its row sums taken out,
    so that over uniform contexts each field f_k has mean 0 and variance 1 - 1/V and, for n >> 1, the V fields are close to
    independent Gaussians: V^n contexts with a density of gaps between the two largest fields that does not vanish at zero,
    which is what the one-third law needs. With n = 1 there are V contexts and a smallest gap: it does not hold there.

    **Arguments**

    - `vocabulary`: V >= 2. `order`: n >= 1 tokens that decide the next. `memory`: ratio of successive weights, in (0, 1].
    - `inverse_temperature`: b > 0; inf makes the next token the argmax of the fields (a deterministic language, entropy 0).
    - `length`: T > n, tokens that a model reads: n uniform random ones (the prompt), then the language. Predictions count
      from position n - 1 on, where the context is full.
    - `seed`: of U. `dtype` of the fields.

    **Errors**: `InputError` for a number outside its domain.
    **Good values**: V = 32, n = 8, T = 16. Its fields over its own contexts are broader than over uniform ones (their
    variance is 1.3 there): what is compared with a theory of unit fields is divided by their root mean square.

    **Failure regime**: a deterministic language ends in a cycle; with `length` - n of the order of n and V^n large the prompts
    keep contexts apart (`top_gaps` measures it). One unit of time of a training run on it is one step.
    """

    columns: Float[Array, "V V"]
    weights: tuple[float, ...] = eqx.field(static=True)
    memory: float = eqx.field(static=True)
    inverse_temperature: float = eqx.field(static=True)
    length: int = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(
        self,
        vocabulary: int,
        *,
        order: int = 8,
        memory: float = 1.0,
        inverse_temperature: float = np.inf,
        length: int = 32,
        seed: int = 0,
        dtype: Any = jnp.float32,
    ) -> None:
        vocabulary, order = whole("vocabulary", vocabulary, 2), whole("order", order)
        length = whole("length", length, order + 1)
        if not 0 < memory <= 1:
            raise InputError("memory", expected="a ratio in (0, 1]", got=memory, remedy="1 weighs all tokens alike")
        if not inverse_temperature > 0:
            raise InputError("inverse_temperature", expected="a positive number or inf", got=inverse_temperature,
                             remedy="inf is a deterministic language")  # fmt: skip
        rng = np.random.default_rng(seed)
        orthogonal, _ = np.linalg.qr(rng.standard_normal((vocabulary, vocabulary)))
        columns = np.sqrt(vocabulary) * (orthogonal - orthogonal.mean(axis=1, keepdims=True))
        weights = float(memory) ** np.arange(order)
        self.columns = jnp.asarray(columns, dtype)
        self.weights = tuple((weights / np.linalg.norm(weights)).tolist())
        self.memory = float(memory)
        self.inverse_temperature = float(inverse_temperature)
        self.length = length
        self.seed = int(seed)

    @property
    def config(self) -> dict[str, Any]:
        """What decides the language, as plain JSON types."""
        return {
            "vocabulary": self.vocabulary, "order": self.order, "memory": self.memory, "length": self.length,
            "inverse_temperature": str(self.inverse_temperature), "seed": self.seed, "dtype": self.columns.dtype.name,
        }  # fmt: skip

    @property
    def vocabulary(self) -> int:
        """V, the number of tokens."""
        return self.columns.shape[0]

    @property
    def order(self) -> int:
        """n, the tokens that decide the next one."""
        return len(self.weights)

    def fields(self, tokens: Int[Array, "T"]) -> Float[Array, "m V"]:
        """f_t after each of the m = T - n + 1 full contexts of a sequence: row i belongs to position n - 1 + i."""
        pushed = self.columns.T[tokens]
        m = tokens.shape[0] - self.order + 1
        parts = (w * pushed[self.order - 1 - j :][:m] for j, w in enumerate(self.weights))
        return sum(parts)  # type: ignore[return-value]

    def top_gaps(self, tokens: Int[Array, "B T"]) -> Float[np.ndarray, " contexts"]:
        r"""f_(1) - f_(2), the gap of the two largest fields at every full context, in units where centred fields have variance 1.

        Its density at zero sets c = (pi^2/12) density of the one-third law; m_V = E max of V normals for Gaussian fields.
        """
        fields = np.asarray(jax.vmap(self.fields)(tokens), float).reshape(-1, self.vocabulary)
        scale = np.sqrt(
            np.sum((fields - fields.mean(axis=1, keepdims=True)) ** 2) / len(fields) / (self.vocabulary - 1)
        )
        top = np.sort(fields, axis=1)[:, -2:]
        return (top[:, 1] - top[:, 0]) / scale

    def log_conditionals(self, fields: Float[Array, "... V"]) -> Float[Array, "... V"]:
        """log p(next | context) from the fields; log of the one-hot argmax (0 and -inf) for a deterministic language."""
        if np.isinf(self.inverse_temperature):
            top = jax.nn.one_hot(jnp.argmax(fields, axis=-1), fields.shape[-1], dtype=bool)
            return jnp.where(top, jnp.zeros_like(fields), -jnp.inf)
        return jax.nn.log_softmax(self.inverse_temperature * fields, axis=-1)

    def sample(self, key: Key[Array, ""], sequences: int) -> Int[Array, "B window"]:
        """`sequences` of T + 1 tokens: a uniform prompt of n tokens, then the language."""
        prompt_key, key = jax.random.split(key)
        prompt = jax.random.randint(prompt_key, (sequences, self.order), 0, self.vocabulary)
        count = self.length + 1 - self.order
        shape = (count, sequences, self.vocabulary)
        hard = np.isinf(self.inverse_temperature)
        noise = (
            jnp.zeros((count, 1, 1), self.columns.dtype) if hard else jax.random.gumbel(key, shape, self.columns.dtype)
        )

        def step(window: Array, noise: Array) -> tuple[Array, Array]:
            fields = jax.vmap(self.fields)(window)[:, -1]
            new = jnp.argmax(fields if hard else self.inverse_temperature * fields + noise, axis=-1).astype(
                window.dtype
            )
            return jnp.concatenate([window[:, 1:], new[:, None]], axis=1), new

        _, generated = jax.lax.scan(step, prompt, noise)
        return jnp.concatenate([prompt, generated.T], axis=1)

    def conditional_entropy(self, fields: Float[Array, "... V"]) -> Float[Array, "..."]:
        """-sum_k p_k log p_k of the next token, in nats: its mean over sampled contexts estimates the entropy without labels."""
        log_p = self.log_conditionals(fields)
        return -jnp.sum(jnp.where(jnp.isneginf(log_p), 0.0, jnp.exp(log_p) * log_p), axis=-1)

    def entropy_rate(self) -> float:
        r"""sum over contexts of pi(context) H(next | context), in nats per token; pi is the stationary distribution.

        Exact to 1e-12 in pi, by iterating the chain of contexts; 0 for a deterministic language. **Errors**: `InputError` for
        more than 2^16 contexts (average `conditional_entropy` over samples instead), and for a chain so cold that 10^5
        iterations do not reach stationarity.
        """
        if np.isinf(self.inverse_temperature):
            return 0.0
        V, n = self.vocabulary, self.order
        if V**n > ENUMERABLE:
            raise InputError("order", expected=f"at most {ENUMERABLE} contexts to enumerate", got=f"{V}^{n}",
                             remedy="average conditional_entropy over sampled contexts")  # fmt: skip
        contexts = np.indices((V,) * n).reshape(n, -1).T  # oldest token first: context number = sum token V^(n-1-place)
        fields = np.asarray(self.columns, float).T[contexts[:, ::-1]].transpose(0, 2, 1) @ np.asarray(self.weights)
        logits = self.inverse_temperature * fields
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        pi = np.full(V**n, 1.0 / V**n)
        for _ in range(100_000):
            # Shift by one token: the oldest is summed out, the new one becomes the last.
            moved = (pi[:, None] * p).reshape(V, -1, V).sum(axis=0).ravel()
            # Half a step: the same stationary distribution, and no oscillation of an almost periodic chain.
            new = 0.5 * (pi + moved)
            change, pi = np.abs(new - pi).sum(), new
            if change < 1e-12:
                entropies = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=1)
                return float(pi @ entropies)
        raise InputError("inverse_temperature", expected="a chain that mixes within 10^5 iterations",
                         got=self.inverse_temperature, remedy="lower it, or sample")  # fmt: skip
