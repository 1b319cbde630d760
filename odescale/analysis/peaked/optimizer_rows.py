"""Rows of `compare_escapes` by optimiser: SGD, Adam, signs and Muon at a constant rate and under power schedules.

Rates are those of a layer with logits W x (SGD: eta = rate d), horizons the same number of steps for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from odescale.analysis.peaked.layer import best_learning_rate
from odescale.analysis.peaked.schedules import sgd
from odescale.clock import PowerSchedule
from odescale.optimizers import Adam, Muon, Sign
from odescale.optimizers.base import AbstractOptimizer
from odescale.systems.peaked import Peaked, peaked

Case = tuple[Peaked, float, str]
ONSET = 100.0
"""Steps after which a power schedule falls."""


def _row(rule: Callable[[], AbstractOptimizer], g: float, **own: Any) -> Callable[[int, float, float], Case]:
    def case(K: int, T: float, d: float) -> Case:
        optimizer = rule()
        given = {"classes": K, "dimension": d, "schedule": PowerSchedule(g, ONSET)} | own
        words = f"K = {given['classes']}, B = {given.get('batch', 1.0):g}, rate = {float(optimizer.rate):g}"
        return peaked(optimizer=optimizer, **given), T * d, words + (f", onset {ONSET:g} steps" if g else "")

    return case


def _sgd(g: float) -> Callable[[int, float, float], Case]:
    def case(K: int, T: float, d: float) -> Case:
        rate = best_learning_rate().ratio
        return sgd(K, rate, power=PowerSchedule(g), dimension=d), T, f"K = {K}, B = 1, eta = {rate:.3f}"

    return case


def _exact(rate: float) -> Callable[[], AbstractOptimizer]:
    return lambda: Muon.exact(rate=rate)


def _plain(rate: float) -> Callable[[], AbstractOptimizer]:
    return lambda: Muon.exact(rate=rate, momentum=0.0, nesterov=False)


OPTIMIZER_ROWS: dict[str, tuple[Callable[[int, float, float], Case], str]] = {
    "SGD": (_sgd(0.0), "the reference"),
    "SGD, g = 1/2": (_sgd(0.5), "the loss slows down"),
    "Adam": (_row(lambda: Adam(rate=1e-3), 0.0), "2/5 while the spread is small, then 1/6"),
    "Adam, g = 1/4": (_row(lambda: Adam(rate=1e-3), 0.25), "2(1 - g)/5"),
    "Adam, g = 1/2": (_row(lambda: Adam(rate=1e-2), 0.5), "2(1 - g)/5"),
    "sign": (_row(lambda: Sign(rate=1e-5), 0.0), "a floor proportional to the rate"),
    "sign, g = 1/4": (_row(lambda: Sign(rate=1e-4), 0.25), "g: the spread grows"),
    "sign, g = 1/2": (_row(lambda: Sign(rate=1e-3), 0.5), "1/2, the best power"),
    "sign, g = 3/4": (_row(lambda: Sign(rate=1e-2), 0.75), "1 - g: D slows down"),
    "sign, B = 8, g = 1/2": (_row(lambda: Sign(rate=1e-3), 0.5, batch=8.0), "8 times the samples per step"),
    "sign, K = 10, B = 8, g = 1/2": (
        _row(lambda: Sign(rate=1e-3), 0.5, classes=10, batch=8.0), "D stops, whatever the schedule",
    ),
    "Muon, B = 32": (_row(_exact(1e-4), 0.0, batch=32.0), "2/5 while the spread is small, then 1/6"),
    "Muon, B = 32, g = 1/2": (_row(_exact(1e-2), 0.5, batch=32.0), "2(1 - g)/5"),
    "Muon, K = 2, momentum 0": (_row(_plain(1e-4), 0.0, classes=2), "a floor proportional to the rate"),
    "Muon, K = 2, momentum 0, g = 1/2": (_row(_plain(1e-2), 0.5, classes=2), "1/2, the best power"),
}  # fmt: skip
"""Name -> (classes, horizon in units of d steps, dimension) -> (system, end of the run, settings), and a remark."""
