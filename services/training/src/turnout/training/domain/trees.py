"""Ensembles of scikit-learn's trees as one ONNX operator, written whole arrays at a time.

skl2onnx 1.20 cannot write histogram boosting with onnx 1.23 (it hands over a boolean where an integer must be), and it
writes forests node by node: here a million nodes take seconds. Thresholds are FP64 and the operator's are FP32; for
the FP32 values that a model sees, `x <= t` is the same as `x <= w`, with w the largest FP32 number not above t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

from turnout.common.errors import Invalid
from turnout.training.domain.graph import ML, Graph

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SINGLE = (DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor)
FORESTS = (RandomForestClassifier, RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor)
BOOSTED = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
# Losses by how the sum of the trees becomes the answer.
_PLAIN = ("HalfSquaredError", "AbsoluteError", "PinballLoss")
_EXPONENTIAL = ("HalfPoissonLoss", "HalfGammaLoss")


@dataclass(frozen=True)
class Tree:
    """Nodes of one tree: split feature and threshold, children, whether a node is a leaf, and what a leaf adds.

    `values` is `[nodes, targets]` of the columns from `target` on; `missing_left` says where NaN goes.
    """

    features: Ints
    thresholds: Floats
    left: Ints
    right: Ints
    leaf: NDArray[np.bool_]
    missing_left: NDArray[np.bool_]
    values: Floats
    target: int = 0


def writable(estimator: BaseEstimator) -> bool:
    """Whether `write` can write it."""
    return isinstance(estimator, (*SINGLE, *FORESTS, *BOOSTED))


def write(graph: Graph, estimator: Any, tensor: str) -> str:
    """The fitted estimator's answer for an FP32 tensor `[rows, features]`: probabilities of the classes that it knows
    `[rows, classes]`, or numbers `[rows, 1]`, in FP32. Raises `Invalid` for what the operator cannot hold."""
    if isinstance(estimator, BOOSTED):
        return _boosted(graph, estimator, tensor)
    trees = [one.tree_ for one in estimator.estimators_] if isinstance(estimator, FORESTS) else [estimator.tree_]
    return _ensemble(graph, [_grown(tree, len(trees)) for tree in trees], tensor)


def _grown(tree: Any, of: int) -> Tree:
    """A tree of a forest of `of`: its leaves hold shares of classes, or a mean."""
    left = np.asarray(tree.children_left, dtype=np.int64)
    leaf = left < 0
    return Tree(
        features=np.where(leaf, 0, tree.feature),
        thresholds=np.where(leaf, 0.0, tree.threshold),
        left=np.where(leaf, 0, left),
        right=np.where(leaf, 0, tree.children_right),
        leaf=leaf,
        missing_left=np.asarray(tree.missing_go_to_left, dtype=np.bool_) & ~leaf,
        values=np.asarray(tree.value)[:, 0, :] / of,
    )


def _boosted(graph: Graph, estimator: Any, tensor: str) -> str:
    predictors = estimator._predictors  # noqa: SLF001 (the trees are nowhere public; skl2onnx reads them here too)
    base = np.asarray(estimator._baseline_prediction, dtype=np.float64).ravel()  # noqa: SLF001
    loss = type(estimator._loss).__name__  # noqa: SLF001
    trees = [_predictor(one.nodes, target) for round_ in predictors for target, one in enumerate(round_)]
    total = _ensemble(graph, trees, tensor, base)
    match loss:
        case "HalfBinomialLoss":
            # Both from the sum itself: 1 - p has no digits left where p is near 1.
            both = graph.node("Concat", graph.node("Neg", total), total, axis=1)
            return graph.node("Sigmoid", both)
        case "HalfMultinomialLoss":
            return graph.node("Softmax", total, axis=1)
        case _ if loss in _PLAIN:
            return total
        case _ if loss in _EXPONENTIAL:
            return graph.node("Exp", total)
        case _:
            raise Invalid("parameters.loss", f"{loss} cannot be written as a graph", fix="loss: squared_error")


def _predictor(nodes: Any, target: int) -> Tree:
    if nodes["is_categorical"].any():
        raise Invalid(
            "parameters.categorical_features", "cannot be written as a graph", fix="let preparation encode categories"
        )
    leaf = nodes["is_leaf"].astype(np.bool_)
    return Tree(
        features=np.where(leaf, 0, nodes["feature_idx"]),
        thresholds=np.where(leaf, 0.0, nodes["num_threshold"]),
        left=np.where(leaf, 0, nodes["left"]),
        right=np.where(leaf, 0, nodes["right"]),
        leaf=leaf,
        missing_left=nodes["missing_go_to_left"].astype(np.bool_) & ~leaf,
        values=nodes["value"].astype(np.float64).reshape(-1, 1),
        target=target,
    )


def _ensemble(graph: Graph, trees: Sequence[Tree], tensor: str, base: Floats | None = None) -> str:
    """The sum of the leaves that a row falls into, `[rows, targets]`."""
    targets = max(tree.target + tree.values.shape[1] for tree in trees)
    node_ids = [np.arange(len(tree.leaf), dtype=np.int64) for tree in trees]
    tree_ids = [np.full(len(tree.leaf), index, dtype=np.int64) for index, tree in enumerate(trees)]
    leaf = np.concatenate([tree.leaf for tree in trees])
    leaves = [_leaves(tree, index) for index, tree in enumerate(trees)]
    attributes: dict[str, Any] = {
        "n_targets": targets,
        "nodes_treeids": np.concatenate(tree_ids),
        "nodes_nodeids": np.concatenate(node_ids),
        "nodes_featureids": np.concatenate([tree.features for tree in trees]),
        "nodes_modes": ["LEAF" if one else "BRANCH_LEQ" for one in leaf.tolist()],
        "nodes_values": not_above(np.concatenate([tree.thresholds for tree in trees])),
        "nodes_truenodeids": np.concatenate([tree.left for tree in trees]),
        "nodes_falsenodeids": np.concatenate([tree.right for tree in trees]),
        "nodes_missing_value_tracks_true": np.concatenate([tree.missing_left for tree in trees]).astype(np.int64),
        **{f"target_{name}": np.concatenate([one[name] for one in leaves]) for name in leaves[0]},
    }  # fmt: skip
    if base is not None:
        attributes["base_values"] = base
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in attributes.items()}
    return graph.node("TreeEnsembleRegressor", tensor, domain=ML, **plain)


def _leaves(tree: Tree, index: int) -> dict[str, NDArray[Any]]:
    """What a tree's leaves add: one entry a leaf and target."""
    width = tree.values.shape[1]
    at = np.flatnonzero(tree.leaf)
    return {
        "treeids": np.full(len(at) * width, index, dtype=np.int64),
        "nodeids": np.repeat(at, width),
        "ids": np.tile(np.arange(width) + tree.target, len(at)),
        "weights": tree.values[at].ravel(),
    }


def not_above(thresholds: Floats) -> Floats:
    """The largest FP32 numbers that are not above `thresholds`."""
    with np.errstate(over="ignore"):
        single = thresholds.astype(np.float32)
        below = np.nextafter(single, np.float32(-np.inf))
    return np.where(single > thresholds, below, single).astype(np.float64)
