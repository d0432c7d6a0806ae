"""From scores of left-out objects to one calibrated probability. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Platt:
    """Logistic model of a score: ``p = 1 / (1 + exp(-(slope * x + offset)))``.

    Attributes:
        slope: ``(f,)`` of each feature, at least 0: more similar is never less likely.
        offset: scalar.
    """

    slope: Floats
    offset: float

    def __call__(self, x: Floats) -> Floats:
        """``(..., f)`` features to ``(...)`` probabilities."""
        out: Floats = 1.0 / (1.0 + np.exp(-np.clip(x @ self.slope + self.offset, -30.0, 30.0)))
        return out


def fit_platt(x: Floats, genuine: npt.NDArray[np.bool_], weight: Floats, prior: float = 1e-2) -> Platt:
    """Platt's method (1999) with his smoothed targets, by Newton steps; ridge on the slopes.

    Args:
        x: ``(n, f)`` features, each about of unit spread.
        genuine: ``(n,)`` whether the label was right.
        weight: ``(n,)`` how many objects a row stands for.
        prior: inverse variance of the slopes.
    """
    positive, negative = weight[genuine].sum(), weight[~genuine].sum()
    target = np.where(genuine, (positive + 1) / (positive + 2), 1 / (negative + 2))
    free = np.ones(x.shape[1], bool)
    while True:
        theta = _newton(x[:, free], target, weight, prior)
        if (theta[:-1] >= 0).all():
            slope = np.zeros(x.shape[1])
            slope[free] = theta[:-1]
            return Platt(slope, float(theta[-1]))
        free[np.flatnonzero(free)[np.argmin(theta[:-1])]] = False


def _newton(x: Floats, target: Floats, weight: Floats, prior: float) -> Floats:
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = np.full(design.shape[1], prior)
    penalty[-1] = 1e-6
    theta: Floats = np.zeros(design.shape[1])

    def loss(t: Floats) -> float:
        z = design @ t
        return float(weight @ (np.logaddexp(0.0, z) - target * z) + 0.5 * penalty @ t**2)

    value = loss(theta)
    for _ in range(100):
        p = 1.0 / (1.0 + np.exp(-np.clip(design @ theta, -30.0, 30.0)))
        gradient = design.T @ (weight * (p - target)) + penalty * theta
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and loss(theta - size * step) > value:
            size /= 2
        theta = theta - size * step
        previous, value = value, loss(theta)
        if previous - value < 1e-9:
            break
    return theta
