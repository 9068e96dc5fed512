"""The published task-relatedness figures of ModelGiF, computed again from the published numbers: no model is needed.

python benchmarks/taskonomy.py [--data DIR]     writes benchmarks/results/taskonomy.json

DIR (or the environment variable STEMMA_DATA) holds `modelgif_taskonomy_distance.json`, the 17 x 17 distances that the
authors published, and `taskonomy_affinity.json`, the affinities and win-rates of the Taskonomy project.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
import sklearn
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata, spearmanr, zscore
from sklearn.metrics import adjusted_rand_score

from stemma import __version__
from stemma.measures.relatedness import similarity_tree, transfer_agreement
from testbeds.measured import write_result

PUBLISHED = {"affinity": 0.8349192618, "win_rate": 0.8061859973}
GROUPS = {
    "2D": ("autoencoder", "denoise", "edge2d", "keypoint2d", "segment2d"),
    "3D": ("curvature", "edge3d", "keypoint3d", "reshade", "rgb2depth", "rgb2mist", "rgb2sfnorm", "segment25d"),
    "geometric": ("room_layout", "vanishing_point_well_defined"),
    "semantic": ("segmentsemantic_rb", "class_1000"),
}
"""The colour groups of the Taskonomy project."""

RELEVANT, DRAWS = 5, 2000


def found_sources(distance: np.ndarray, affinity: np.ndarray, k: int) -> tuple[float, float]:
    """Precision and recall at k: of the k nearest sources of each target, how many are among its five best."""
    hits = []
    for j in range(len(distance)):
        others = np.delete(np.arange(len(distance)), j)
        near = others[np.argsort(distance[others, j], kind="stable")[:k]]
        best = others[np.argsort(-affinity[others, j], kind="stable")[:RELEVANT]]
        hits.append(len(set(near) & set(best)))
    return float(np.mean(hits)) / k, float(np.mean(hits)) / RELEVANT


def views(distance: np.ndarray, affinity: np.ndarray) -> dict[str, Any]:
    """The published metric, and others of the same question."""
    both = transfer_agreement(distance, affinity), transfer_agreement(distance, affinity, diagonal=False)
    off, upper = ~np.eye(len(distance), dtype=bool), np.triu_indices(len(distance), 1)
    mutual = (affinity + affinity.T) / 2
    return {
        "per_target": {"diagonal_in": float(both[0].mean()), "diagonal_out": float(both[1].mean())},
        "per_target_each": [float(v) for v in both[0]],
        "per_source": {
            "diagonal_in": float(transfer_agreement(distance.T, affinity.T).mean()),
            "diagonal_out": float(transfer_agreement(distance.T, affinity.T, diagonal=False).mean()),
        },
        "all_off_diagonal": -float(spearmanr(distance[off], affinity[off]).statistic),
        "symmetric_upper_triangle": -float(spearmanr(distance[upper], mutual[upper]).statistic),
        "precision_at": {str(k): found_sources(distance, affinity, k)[0] for k in (1, 3, 5)},
        "recall_at": {str(k): found_sources(distance, affinity, k)[1] for k in (1, 3, 5)},
    }


def chance(distance: np.ndarray, affinity: np.ndarray) -> dict[str, Any]:
    """The published metric when the tasks of the distances are relabelled at random."""
    rng = np.random.default_rng(0)
    near, good = (zscore(rankdata(m, axis=0), axis=0) for m in (distance, affinity))
    orders = [rng.permutation(len(distance)) for _ in range(DRAWS)]
    values = -np.array([(near[np.ix_(o, o)] * good).mean() for o in orders])
    return {"draws": DRAWS, "mean": float(values.mean()), "sd": float(values.std()), "max": float(values.max()),
            "p_value": float((1 + (values >= transfer_agreement(distance, affinity).mean()).sum()) / (DRAWS + 1)),
            "precision_at_5": RELEVANT / (len(distance) - 1)}  # fmt: skip


def trees(distance: np.ndarray, tasks: list[str]) -> dict[str, Any]:
    truth = [next(g for g, members in GROUPS.items() if t in members) for t in tasks]
    tree = similarity_tree(distance)
    clusters = tree.clusters(len(GROUPS))
    average = fcluster(linkage(squareform(distance, checks=False), "average"), len(GROUPS), "maxclust")
    raw = fcluster(linkage(pdist(distance), "ward"), len(GROUPS), "maxclust")
    return {
        "adjusted_rand": adjusted_rand_score(truth, clusters),
        "adjusted_rand_average_linkage_of_distances": adjusted_rand_score(truth, average),
        "adjusted_rand_ward_of_raw_rows": adjusted_rand_score(truth, raw),
        "top_heights": [float(v) for v in tree.linkage[-6:, 2]],
        "linkage": tree.linkage.tolist(),
        "order": [tasks[i] for i in tree.order],
        "groups": [truth[i] for i in tree.order],
        "clusters": [[tasks[i] for i in tree.order if clusters[i] == c] for c in range(len(GROUPS))],
    }


def study(data: Path) -> dict[str, Any]:
    published = json.loads((data / "modelgif_taskonomy_distance.json").read_text())
    truth = json.loads((data / "taskonomy_affinity.json").read_text())
    distance, affinity = np.array(published["distance"]), np.array(truth["affinity"])
    wins = np.array(truth["win_rate_vs_pixels_16k"])
    seen = {"affinity": views(distance, affinity), "win_rate": views(distance, wins)}
    return {
        "tasks": published["tasks"],
        "published": PUBLISHED,
        "difference_from_published": {
            k: abs(seen[k]["per_target"]["diagonal_in"] - v) for k, v in PUBLISHED.items()
        },
        **seen,
        "chance": chance(distance, affinity),
        "tree": trees(distance, published["tasks"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("STEMMA_DATA"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "taskonomy.json")
    args = parser.parse_args()
    if args.data is None:
        parser.error("say where the two JSON files lie: --data DIR, or the environment variable STEMMA_DATA")
    versions = {"numpy": np.__version__, "scipy": scipy.__version__, "scikit-learn": sklearn.__version__}
    result = {"version": __version__, "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
              "versions": versions, **study(Path(args.data))}  # fmt: skip
    write_result(args.out, result)
    shown = {k: v for k, v in result.items() if k not in ("tree", "tasks")}
    print(json.dumps({**shown, "adjusted_rand": result["tree"]["adjusted_rand"]}, indent=1))


if __name__ == "__main__":
    main()
