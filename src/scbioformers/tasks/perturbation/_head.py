"""The head that predicts responses to perturbations. It consists of float32 arrays and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scbioformers.core import GeneIndex, ModelFormatError
from scbioformers.model import Head
from scbioformers.tasks.perturbation._combinations import overlap
from scbioformers.tasks.perturbation._components import COMPONENTS, Array, TargetData
from scbioformers.tasks.perturbation._correlations import lowered
from scbioformers.tasks.perturbation._labels import LabelReader, Targets, require_known
from scbioformers.tasks.perturbation._stack import Stack

MAX_LOADINGS = 256
_ARRAYS = ("effects", "se", "features", "loadings", "coexpression", "control_mean", "control_sd", "network", "weights",
           "largest", "residual_sd", "interval_se", "control_se", "cross_validated", "token")  # fmt: skip
Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PerturbationHead:
    """Fitted to the effects of P perturbations on M genes. N targets are known: genes, or names with features."""

    genes: Names
    """(M,), genes of the model."""
    names: Names
    """(N,), names of all targets for which effects can be predicted."""
    perturbations: tuple[Targets, ...]
    """(P,), targets of each training perturbation."""
    labels: Mapping[str, Targets]
    """Targets of each label of the training data that is not just its targets joined by ``+``."""
    kind: str
    """Kind of perturbation: "knockout", "activation" or "drug"."""
    effects: NDArray[np.float32]
    """(P, M), observed effects in log1p units."""
    se: NDArray[np.float32]
    """(P, M), standard errors of the effects, by which they are weighted in predictions of other targets."""
    features: NDArray[np.float32]
    """(N, F), features of the targets, scaled to unit length."""
    loadings: NDArray[np.float32]
    """(M, R), loadings of the correlations between genes, over all cells of the training data."""
    coexpression: NDArray[np.float32]
    """(P, M), correlations of each training target with all genes, reduced by their standard error.

    They are computed without the cells of targets in the same fold. 0 for combinations.
    """
    control_mean: NDArray[np.float32]
    """(M,), mean log1p expression in control cells."""
    control_sd: NDArray[np.float32]
    """(M,), standard deviation in control cells."""
    network: NDArray[np.float32]
    """(P, M), effect of each single training target predicted by the network, trained without this target."""
    weights: NDArray[np.float32]
    """(n_components,), weights of the components."""
    largest: NDArray[np.float32]
    """(n_components,), largest norm of each component over the single training targets."""
    residual_sd: NDArray[np.float32]
    """(M,), standard deviation of the errors of the out-of-fold predictions, including measurement noise."""
    interval_se: NDArray[np.float32]
    """(P, M), standard errors of the effects, for intervals."""
    control_se: NDArray[np.float32]
    """(P, M), the part of ``interval_se`` that is due to the control cells. It is also an error of every prediction."""
    cross_validated: NDArray[np.float32]
    """(P, M), prediction of each training perturbation without its own cells."""
    remaining: float
    """Expression of a perturbed gene relative to control."""
    strength: float
    """Factor in [0, 1] of the deviation of the weighted components from the mean training effect."""
    combination: tuple[float, float]
    """Weights of the sum of the single effects and of their overlap, for combinations."""
    correlation_error: float
    """Standard error of the correlations over all cells."""
    mean_depth: float
    """Depth to which counts are scaled before log1p."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Scores of the cross-validation over targets."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Columns and labels that were passed to the fit: ``key``, ``control``, ``batch_key``, …."""
    token: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """(D,), external token of a perturbed gene, trained on the effects of all single targets."""

    @property
    def reader(self) -> LabelReader:
        """Reads labels of other data, and perturbations that are asked for, as the labels of the training data."""
        split, control = self.kind != "drug", str(self.task.get("control", ""))
        return LabelReader(control, self.labels, split, self.names)

    def targets_of(self, label: str, index: GeneIndex) -> Targets:
        """Targets of a label of other data, sorted. Genes have their names in the model.

        ``index`` has the genes of the model by their names in the data, and in the model. The former go first.
        """
        names = self.reader.read(label) or ()
        return tuple(
            sorted({self.genes[i] if i >= 0 else name for name, i in zip(names, index.positions(names), strict=True)})
        )

    def resolve(self, targets: Sequence[Targets]) -> None:
        """Check that all targets are known. Raises :class:`DataError`, which suggests similar names."""
        require_known((name for each in targets for name in each), set(self.names), "Perturbations")

    def target_data(self, singles: Sequence[str], network: NDArray[Any] | None = None) -> TargetData:
        """Data on K single targets. ``network`` (K, M) contains the effects predicted by the network."""
        gene_at, name_at = _positions(self.genes), _positions(self.names)
        at = np.array([name_at[name] for name in singles], dtype=np.int64)
        features = self.features.astype(np.float64)
        genes = np.array([name_at[name] for name in self.genes], dtype=np.int64)
        m = len(self.genes)
        own = np.array([gene_at.get(name, -1) for name in singles], dtype=np.int64)
        if self.kind == "drug":
            own[:] = -1
        return TargetData(
            own=own,
            features=features[at].reshape(len(singles), -1),
            gene_features=features[genes],
            correlations=self._correlations(singles, own),
            control_sd=self.control_sd.astype(np.float64),
            network=np.zeros((len(singles), m)) if network is None else np.asarray(network, np.float64),
            kind=self.kind,
        )

    def _correlations(self, singles: Sequence[str], own: NDArray[np.int64]) -> Array:
        """(K, M), correlations of the targets with all genes.

        For training targets these are ``coexpression``. For other targets they are computed over all cells.
        """
        loadings, seen = self.loadings.astype(np.float64), _positions(self.perturbations)
        found = lowered(loadings[np.maximum(own, 0)] @ loadings.T, self.correlation_error)
        for i, name in enumerate(singles):
            if (name,) in seen:
                found[i] = self.coexpression[seen[(name,)]]
        found[own < 0] = 0
        return found

    def weight(self, component: str) -> float:
        """The weight of a component. ``component`` is a name in :data:`COMPONENTS`."""
        return float(self.weights[COMPONENTS.index(component)])

    @property
    def stack(self) -> Stack:
        """The weighted components with the data of the single training targets."""
        single = [i for i, targets in enumerate(self.perturbations) if len(targets) == 1]
        training = self.target_data([self.perturbations[i][0] for i in single], self.network[single])
        return Stack(
            self.weights.astype(np.float64),
            training,
            self.effects[single].astype(np.float64),
            self.se[single].astype(np.float64),
            self.largest.astype(np.float64),
            self.strength,
        )

    def predict(
        self, targets: Sequence[Targets], network: Mapping[str, Array] | None = None, *, unseen: bool = False
    ) -> tuple[Array, Array]:
        """Predict effects (K, M) in log1p units and their standard errors.

        Parameters
        ----------
        targets
            Targets that are perturbed together, for each of K perturbations. The names must be known.
        network
            Effects (M,) predicted by the network, for single targets that are not training perturbations.
        unseen
            Whether observed effects of the same perturbation are not used.
        """
        self.resolve(targets)
        singles = list(dict.fromkeys(name for each in targets for name in each))
        effect, sd, control = self._singles(singles, network or {}, unseen)
        at = _positions(tuple(singles))
        found, error = np.zeros((len(targets), len(self.genes))), np.zeros((len(targets), len(self.genes)))
        observed = {} if unseen else _positions(self.perturbations)
        for i, each in enumerate(targets):
            rows = [at[name] for name in each]
            if len(rows) == 1:
                found[i], error[i] = effect[rows[0]], np.hypot(sd[rows[0]], control[rows[0]])
                continue
            found[i] = self.combine(each, effect[rows])
            # the control cells are the same for all targets, so their errors add up
            total, shared = np.sqrt((sd[rows] ** 2).sum(axis=0)), control[rows].sum(axis=0)
            if each in observed:
                row = observed[each]
                apart = shared - control[rows].mean(axis=0)  # the observed effect has the error of the controls once
                found[i], total = self._update(found[i], np.hypot(total, apart), row)
                shared = self.control_se[row].astype(np.float64)
            error[i] = np.hypot(total, shared)
        return np.maximum(found, -self.control_mean.astype(np.float64)), error

    def _singles(
        self, singles: Sequence[str], network: Mapping[str, Array], unseen: bool
    ) -> tuple[Array, Array, Array]:
        """Effects (K, M) of single targets, their standard errors without that of the controls, and that one."""
        m = len(self.genes)
        at = _positions(self.perturbations)
        by_network = np.zeros((len(singles), m))
        for i, name in enumerate(singles):
            by_network[i] = self.network[at[(name,)]] if (name,) in at else network.get(name, 0.0)
        target_data = self.target_data(singles, by_network)
        effect = self.stack.predict(target_data, self._itself(singles))
        effect = np.where(target_data.own_mask(), self.own_change(), effect)
        sd = np.broadcast_to(self.residual_sd.astype(np.float64), effect.shape).copy()
        # effects are differences from the same controls, so the error of these does not show in the residuals
        control = np.tile(np.sqrt((self.control_se.astype(np.float64) ** 2).mean(axis=0)), (len(singles), 1))
        if not unseen:
            for i, name in enumerate(singles):
                if (name,) in at:
                    row = at[(name,)]
                    effect[i], sd[i] = self._update(effect[i], sd[i], row)
                    control[i] = self.control_se[row]
        return effect, sd, control

    def combine(self, targets: Targets, effects: Array) -> Array:
        """(M,), effect of targets that are perturbed together, from their single effects (K, M)."""
        found: Array = self.combination[0] * effects.sum(axis=0) - self.combination[1] * overlap(effects)
        for effect, mask in zip(effects, self.target_data(list(targets)).own_mask(), strict=True):
            found[mask] = effect[mask]
        return found

    def own_change(self) -> Array:
        """(M,), change of each gene in log1p units if the gene itself is perturbed.

        Its expression changes to the share ``remaining`` of the control mean.
        """
        base = self.control_mean.astype(np.float64)
        found: Array = np.log1p(self.remaining * np.expm1(base)) - base
        return found

    def _itself(self, singles: Sequence[str]) -> NDArray[np.bool_]:
        training = [targets[0] for targets in self.perturbations if len(targets) == 1]
        return np.array([[name == other for other in training] for name in singles]).reshape(len(singles), -1)

    def _update(self, prior: Array, sd: Array, row: int) -> tuple[Array, Array]:
        """Combine a prediction with the observed effect, both weighted by their precision without that of the controls.

        The error of the controls is in both, so it is not reduced.
        """
        total, control = (part[row].astype(np.float64) for part in (self.interval_se, self.control_se))
        noise = np.maximum(total**2 - control**2, 0)
        spread = np.maximum(sd**2 - noise, 0.05 * sd**2)
        spread = np.maximum(spread, (self.effects[row].astype(np.float64) - prior) ** 2 - noise)
        share = spread / np.maximum(spread + noise, 1e-18)
        return prior + share * (self.effects[row] - prior), np.sqrt(share * noise)

    def to_head(self) -> Head:
        """Convert to the form that is stored with a model."""
        config = {
            "names": list(self.names),
            "perturbations": [list(each) for each in self.perturbations],
            "labels": {label: list(targets) for label, targets in self.labels.items()},
            "kind": self.kind,
            "remaining": self.remaining,
            "strength": self.strength,
            "combination": list(self.combination),
            "correlation_error": self.correlation_error,
            "mean_depth": self.mean_depth,
            "evidence": dict(self.evidence),
            "task": dict(self.task),
        }
        return Head(config, {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in _ARRAYS})

    @classmethod
    def from_head(cls, genes: Names, head: Head) -> PerturbationHead:
        """Inverse of :meth:`to_head`. Raises :class:`ModelFormatError` for missing entries or wrong shapes."""
        stored, arrays = head.config, head.arrays
        try:
            return cls._checked(genes, stored, arrays)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFormatError(
                f"The stored response to perturbations is inconsistent: {error}. Run `bf.tl.fit` again."
            ) from error

    @classmethod
    def _checked(cls, genes: Names, stored: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> PerturbationHead:
        if lacking := [name for name in _ARRAYS if name not in arrays]:
            raise ModelFormatError(
                f"The stored response to perturbations lacks {lacking}; another version may have written it. "
                "Run `bf.tl.fit` again."
            )
        names = tuple(str(name) for name in stored["names"])
        perturbations = tuple(tuple(str(name) for name in each) for each in stored["perturbations"])
        p, m, n = len(perturbations), len(genes), len(names)
        shapes = {
            "effects": (p, m),
            "se": (p, m),
            "control_mean": (m,),
            "control_sd": (m,),
            "coexpression": (p, m),
            "network": (p, m),
            "weights": (len(COMPONENTS),),
            "largest": (len(COMPONENTS),),
            "residual_sd": (m,),
            "interval_se": (p, m),
            "control_se": (p, m),
            "cross_validated": (p, m),
        }
        wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
        wrong += [name for name, rows in (("features", n), ("loadings", m)) if len(arrays[name]) != rows]
        known = set(names)
        if wrong or not known.issuperset(genes) or not all(set(each) <= known for each in perturbations):
            raise ModelFormatError(
                f"The stored response to perturbations has inconsistent {wrong or 'names'}. Run `bf.tl.fit` again."
            )
        combination = (float(stored["combination"][0]), float(stored["combination"][1]))
        return cls(
            genes=genes,
            names=names,
            perturbations=perturbations,
            labels={str(key): tuple(str(name) for name in value) for key, value in stored["labels"].items()},
            kind=str(stored["kind"]),
            remaining=float(stored["remaining"]),
            strength=float(stored["strength"]),
            combination=combination,
            correlation_error=float(stored["correlation_error"]),
            mean_depth=float(stored["mean_depth"]),
            evidence=dict(stored["evidence"]),
            task=dict(stored["task"]),
            **{name: arrays[name] for name in _ARRAYS},
        )


def _positions(names: Sequence[Any]) -> dict[Any, int]:
    return {name: i for i, name in enumerate(names)}
