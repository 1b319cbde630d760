"""What a run costs, as an explicit record: FLOP, bytes, devices, shapes; every number printed, editable and sourced.

    training FLOP = 6 N D (x 4/3 with full checkpointing);  inference FLOP = 2 N S
    bytes per device = N (weights + gradients + states, each whole or divided by the devices) + activations
    activations = s b h L (34 + 5 a s/h), selective 34 s b h L, full checkpointing 2 s b h L;  N = 12 L h^2

Sources: Kaplan et al. 2020 (arXiv 2001.08361: 6 N D, N = 12 L h^2), Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054: 16 bytes and
their division), Korthikanti et al. 2022 (arXiv 2205.05198: activations), Dettmers et al. 2022 (arXiv 2110.02861: 8-bit Adam)
and 2023 (arXiv 2305.14314: QLoRA), Hu et al. 2022 (arXiv 2106.09685: LoRA).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import equinox as eqx
import numpy as np

from odescale.errors import InputError, require_number

OPTIMIZERS = {  # bytes per parameter: weights, gradients, optimiser states (the 32-bit copy of the weights among them)
    "adam": (2.0, 2.0, 12.0),
    "adam-8bit": (2.0, 2.0, 6.0),
    "adam-32": (4.0, 4.0, 8.0),
    "muon": (2.0, 2.0, 8.0),
    "momentum": (2.0, 2.0, 8.0),
    "sgd": (2.0, 2.0, 4.0),
}
CHECKPOINTING = ("none", "selective", "full")
ADAPTERS = {"none": 0.0, "lora": 2.0, "qlora": 0.5}
"""Bytes per frozen parameter: 16-bit weights, or 4-bit ones."""


class Setup(eqx.Module):
    """One discrete choice: `optimizer` (with its precision), `checkpointing` of activations, `zero` stage 0 to 3, `adapter`.

    - `optimizer`: adam (mixed precision, 16 bytes per parameter), adam-8bit (10), adam-32 (16), muon and momentum (12), sgd (8).
    - `checkpointing`: none, selective (attention matrices computed again), full. `adapter`: none, lora, qlora: most weights frozen.
    """

    optimizer: str = eqx.field(static=True, default="adam")
    checkpointing: str = eqx.field(static=True, default="none")
    zero: int = eqx.field(static=True, default=0)
    adapter: str = eqx.field(static=True, default="none")

    def __check_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("checkpointing", CHECKPOINTING), ("zero", (0, 1, 2, 3)),
                            ("adapter", ADAPTERS)):  # fmt: skip
            if getattr(self, name) not in known:
                raise InputError(
                    name, expected=f"one of {', '.join(map(str, known))}", got=getattr(self, name), remedy="choose one"
                )

    @property
    def parts(self) -> tuple[str, ...]:
        """Keys of `Assumptions.token_factor` and `speed_factor` that apply to this choice."""
        return self.optimizer, f"checkpointing-{self.checkpointing}", f"zero-{self.zero}", self.adapter

    def __str__(self) -> str:
        adapter = "" if self.adapter == "none" else f", {self.adapter}"
        return f"{self.optimizer}, checkpointing {self.checkpointing}, ZeRO-{self.zero}{adapter}"


class Assumptions(eqx.Module):
    """The numbers behind a plan. Change one with `Assumptions(peak_flops=1.98e15)`; `lines()` prints them with their sources.

    - `train_cost`, `serve_cost`: FLOP per parameter and token, forward and backward, and forward alone.
    - `full_recompute`, `selective_recompute`: factor on the training FLOP by checkpointing. `lora_flop`: by frozen weights, whose
      gradients are not formed (4 of 6).
    - `peak_flops`: FLOP/s of one device; `utilisation`: share of it reached, recomputed FLOP counted. `step_seconds`: latency
      of one step beside the arithmetic (communication, pipeline), s.
    - `sequence`: tokens; `micro_batch`: sequences per device at once; `aspect`: h/L; `head`: width of a head, h/a.
    - `batch`: tokens per step where the batch is not planned. `lora_share`: trained weights over N. `overhead`: factor on the
      memory.
    - `token_factor`, `speed_factor`: what an optimiser, precision, ZeRO stage or adapter does to the **loss** (as a factor on the
      tokens) and to the **speed**. **Empty means 1: no effect assumed at all**, so that a saving of memory comes for free. Give
      your own, e.g. `token_factor={"adam-8bit": 0.98}, speed_factor={"zero-3": 0.85}`; `Setup.parts` lists the keys.
    """

    train_cost: float = 6.0
    serve_cost: float = 2.0
    full_recompute: float = 4 / 3
    selective_recompute: float = 1.027
    lora_flop: float = 2 / 3
    peak_flops: float = 9.89e14
    utilisation: float = 0.4
    step_seconds: float = 0.0
    sequence: float = 4096.0
    micro_batch: float = 1.0
    aspect: float = 128.0
    head: float = 128.0
    batch: float = 4.0 * 2**20
    lora_share: float = 0.01
    overhead: float = 1.0
    token_factor: Mapping[str, float] = eqx.field(default_factory=dict)
    speed_factor: Mapping[str, float] = eqx.field(default_factory=dict)

    def __check_init__(self) -> None:
        for name in self.numbers:
            require_number(name, getattr(self, name), open_=name != "step_seconds")
        for name in ("utilisation", "lora_share"):
            if getattr(self, name) > 1:
                raise InputError(name, expected="a share, at most 1", got=getattr(self, name), remedy="mend it")
        known = {part for setup in setups() for part in setup.parts}
        for field in ("token_factor", "speed_factor"):
            for key, value in getattr(self, field).items():
                if key not in known:
                    raise InputError(
                        field, expected=f"keys among {', '.join(sorted(known))}", got=key, remedy="mend the key"
                    )
                require_number(f"{field}[{key!r}]", value, open_=True)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the plain numbers."""
        return tuple(SOURCES)

    def factor(self, kind: str, setup: Setup) -> float:
        """The product of the user's factors of `setup`: `kind` is "token_factor" or "speed_factor"."""
        table = getattr(self, kind)
        return float(np.prod([table.get(part, 1.0) for part in setup.parts]))

    def flop_factor(self, setup: Setup) -> float:
        """Factor on 6 N D by checkpointing and frozen weights."""
        again = {"none": 1.0, "selective": self.selective_recompute, "full": self.full_recompute}
        return again[setup.checkpointing] * (1.0 if setup.adapter == "none" else self.lora_flop)

    def memory(self, params: np.ndarray, devices: np.ndarray, setup: Setup) -> np.ndarray:
        """Bytes per device: weights, gradients, optimiser states, activations of `micro_batch` sequences.

        ZeRO-1 divides the states by the devices, ZeRO-2 the gradients too, ZeRO-3 the weights too; without ZeRO all are whole.
        """
        weights, gradients, states = OPTIMIZERS[setup.optimizer]
        split = [1 / devices if setup.zero >= stage else 1.0 for stage in (3, 2, 1)]
        per_trained = weights * split[0] + gradients * split[1] + states * split[2]
        if setup.adapter == "none":
            held = params * per_trained
        else:
            held = params * (ADAPTERS[setup.adapter] * split[0] + self.lora_share * per_trained)
        layers = np.cbrt(params / (12 * self.aspect**2))
        hidden = self.aspect * layers
        per_token = {"none": 34 + 5 * self.sequence / self.head, "selective": 34.0, "full": 2.0}[setup.checkpointing]
        activations = self.sequence * self.micro_batch * hidden * layers * per_token
        return self.overhead * (held + activations)

    def lines(self) -> list[str]:
        """Every assumption with its value and where it comes from."""
        told = [f"{name} = {getattr(self, name):.6g}  ({source})" for name, source in SOURCES.items()]
        for kind, what in (("token_factor", "loss"), ("speed_factor", "speed")):
            table = getattr(self, kind)
            said = ", ".join(f"{k}: {v:g}" for k, v in table.items()) if table else "1 everywhere, the user's to give"
            told.append(f"{kind} (effect of a choice on the {what}) = {said}")
        return told

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: name -> {value, source}, and the two tables of factors."""
        told: dict[str, Any] = {n: {"value": float(getattr(self, n)), "source": s} for n, s in SOURCES.items()}
        return told | {"token_factor": dict(self.token_factor), "speed_factor": dict(self.speed_factor)}


SOURCES = {
    "train_cost": "FLOP per parameter and token; Kaplan et al. 2020",
    "serve_cost": "FLOP per parameter and served token; Kaplan et al. 2020",
    "full_recompute": "FLOP with full checkpointing; one more forward pass",
    "selective_recompute": "FLOP with selective checkpointing; Korthikanti et al. 2022, GPT-3",
    "lora_flop": "FLOP with frozen weights; no weight gradients, 4 of 6",
    "peak_flops": "FLOP/s of a device; H100 dense 16-bit, data sheet",
    "utilisation": "share of the peak; the user's to measure",
    "step_seconds": "s per step beside arithmetic; the user's to measure",
    "sequence": "tokens",
    "micro_batch": "sequences per device at once",
    "aspect": "h/L in N = 12 L h^2; GPT-3: 12288/96",
    "head": "h/a; GPT-3: 128",
    "batch": "tokens per step where the batch is not planned",
    "lora_share": "trained over all weights; Hu et al. 2022",
    "overhead": "factor on memory: fragmentation, buffers; the user's to measure",
}


def setups(**choices: Any) -> tuple[Setup, ...]:
    """Every combination of the `choices`, optimizer, checkpointing, zero, adapter: one value or several; absent: all.

    **Raises** `InputError` for a choice that is not known.
    """
    known: dict[str, tuple] = {
        "optimizer": tuple(OPTIMIZERS), "checkpointing": CHECKPOINTING, "zero": (0, 1, 2, 3), "adapter": tuple(ADAPTERS),
    }  # fmt: skip
    for name in choices:
        if name not in known:
            raise InputError("choices", expected=f"some of {', '.join(known)}", got=name, remedy="leave it out")
    told = [tuple(_several(choices.get(name, default))) for name, default in known.items()]
    found = tuple(Setup(*values) for values in product(*told))
    if not found:
        raise InputError("choices", expected="at least one value of each", got=choices, remedy="name one")
    return found


def _several(value: Any) -> Iterator[Any]:
    return iter((value,) if isinstance(value, str | int) else value)
