"""Made-up objects on the unit sphere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ml_backend.labeling.few_shot.pattern_bank import Exemplars

D = 48


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def direction(seed: int, d: int = D) -> np.ndarray:
    """``(d,)``: the middle of one look; two seeds are about at right angles."""
    return unit(np.random.default_rng([1, seed]).normal(size=d))


def views(look: np.ndarray, count: int, seed: int, spread: float = 0.5, own: float = 0.15) -> np.ndarray:
    """``(count, d)`` views of one new object: ``spread`` from its look, ``own`` among each other."""
    rng = np.random.default_rng([2, seed])
    thing = look + spread * rng.normal(size=look.shape) / np.sqrt(look.size)
    return unit(thing + own * rng.normal(size=(count, look.size)) / np.sqrt(look.size))


def exemplars(objects: Mapping[str, Sequence[np.ndarray]]) -> Exemplars:
    """Objects by label, each ``(m, d)`` views; ids count from 100."""
    rows = [(label, thing) for label, things in objects.items() for thing in things]
    if not rows:
        return Exemplars(np.zeros(0, np.int64), np.zeros((0, D), np.float32), (), np.zeros(0, np.int64))
    sizes = [len(thing) for _, thing in rows]
    return Exemplars(
        np.arange(sum(sizes)) + 100,
        np.concatenate([thing for _, thing in rows]),
        tuple(label for label, thing in rows for _ in range(len(thing))),
        np.repeat(np.arange(len(rows)), sizes),
    )


def shuffled(given: Exemplars, seed: int) -> Exemplars:
    order = np.random.default_rng(seed).permutation(len(given))
    return Exemplars(
        given.ids[order], given.embeddings[order], tuple(given.labels[i] for i in order), given.groups[order]
    )
