"""Algorithm 1 of ModHiFi against its sentences, written out with loops over samples."""

import numpy as np
import torch

from stemma.edits.fidelity.modhifi_p import compensated, kept_at, percentiles, union_over_outputs, union_over_readers
from stemma.edits.fidelity.subset_fidelity import contributions


def test_the_sets_and_factors_are_those_of_the_paper() -> None:
    draw = np.random.default_rng(0)
    units, kernel, samples = 7, 3, 200
    u = draw.normal(size=(samples, units * kernel)) @ draw.normal(size=(units * kernel, units * kernel))
    layers = [draw.normal(size=(n, units * kernel)) for n in (4, 5)]
    index = torch.arange(units * kernel).reshape(units, kernel)
    moment = torch.from_numpy(u.T @ u / samples)
    best = np.zeros((2, units))
    saliency = []
    for k, w in enumerate(layers):
        parts = np.einsum("sik,cik->sci", u.reshape(samples, units, kernel), w.reshape(len(w), units, kernel))
        whole = parts.sum(2)
        r = np.array([[np.mean(whole[:, c] * parts[:, c, i]) for i in range(units)] for c in range(len(w))])
        found = contributions(torch.from_numpy(w), moment, index)[0]
        np.testing.assert_allclose(found.numpy(), r, rtol=1e-10)
        saliency.append(found)
        for c in range(len(w)):
            for place, i in enumerate(sorted(range(units), key=lambda i, r=r, c=c: r[c, i])):
                best[k, i] = max(best[k, i], place)
    union = union_over_readers([union_over_outputs(s) for s in saliency]).numpy()
    np.testing.assert_array_equal(np.floor(union), best.max(0))
    idle = np.array([1.0] * (units - 1) + [0.0])
    assert kept_at(percentiles(union, idle), 0.0) == units - 1  # what contributes nothing is in no set
    for tau in (0.2, 0.5, 0.8):
        wanted = sum(any(best[k, i] >= tau * units for k in (0, 1)) for i in range(units))
        assert kept_at(percentiles(np.floor(union), np.ones(units)), tau) == wanted

    kept = np.array([0, 2, 3, 6])
    rows = index[kept].reshape(-1).numpy()
    w = layers[0]
    v, y = u[:, rows], u @ w.T
    moments = (torch.from_numpy(x.T @ v / samples) for x in (v, y))
    new = compensated(torch.from_numpy(w[:, rows]), *moments, torch.arange(len(rows)).reshape(-1, kernel), 0.0)
    for c in range(len(w)):
        contribution = np.einsum("sik,ik->si", v.reshape(samples, -1, kernel), w[c, rows].reshape(-1, kernel))
        delta = np.linalg.lstsq(contribution, y[:, c], rcond=None)[0]
        np.testing.assert_allclose(new[c].numpy(), w[c, rows] * np.repeat(delta, kernel), rtol=1e-9, atol=1e-12)
