"""Methods of :mod:`benchmarks.biostate`: embeddings of both modalities, and one modality from the other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from mudata import MuData
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor

import scbioformers as bf
from benchmarks._biostate_samples import Samples, Values, as_mudata
from benchmarks._biostate_totalvi import embed_totalvi, predict_totalvi

BOTH = ("rna", "prot")
QUANTILES = (0.1, 0.9)
N_COMPONENTS = 50


def fit_ours(mdata: MuData, seed: int, max_steps: int | None = None, attention: bool = True) -> MuData:
    """Fit our model with its defaults to the modalities of a MuData."""
    train = bf.TrainConfig(max_steps=max_steps)
    bf.tl.fit(mdata, config=bf.ModelConfig(attention=attention), train=train, rng=seed)
    return mdata


def embed_ours(samples: Samples, seed: int, modalities: Sequence[str] = BOTH, **options: Any) -> Values:
    """Our embedding, of a model of these modalities."""
    mdata = fit_ours(as_mudata({name: getattr(samples, name) for name in modalities}), seed, **options)
    bf.tl.embed(mdata)
    return np.asarray(mdata.obsm["X_bioformer"])


def equal_variance(values: Values) -> Values:
    """Centred columns, divided by one number, so that their variances sum to 1."""
    centred = values - values.mean(axis=0)
    return centred / np.sqrt(np.square(centred).mean(axis=0).sum())


def embed_pca(samples: Samples, seed: int) -> Values:
    """Components of the RNA."""
    return bf.metrics.pca(samples.profiles(), N_COMPONENTS, seed)


def embed_pca_both(samples: Samples, seed: int) -> Values:
    """Components of both modalities, which have the same total variance."""
    return joint_pca(samples.profiles().toarray(), samples.proteins(), seed)


def joint_pca(rna: Values, prot: Values, seed: int) -> Values:
    """Components of two matrices beside each other, which have the same total variance."""
    return bf.metrics.pca(np.hstack([equal_variance(rna), equal_variance(prot)]), N_COMPONENTS, seed)


def embed_beside(samples: Samples, seed: int) -> Values:
    """The components of the RNA and the proteins beside each other, with the same total variance."""
    return np.hstack([equal_variance(embed_pca(samples, seed)), equal_variance(samples.proteins())])


EMBEDDINGS: dict[str, Callable[[Samples, int], Values]] = {
    "ours": embed_ours,
    "ours_rna": partial(embed_ours, modalities=("rna",)),
    "ours_prot": partial(embed_ours, modalities=("prot",)),
    "ours_no_attention": partial(embed_ours, attention=False),
    "ours_untrained": partial(embed_ours, max_steps=0),
    "pca_rna": embed_pca,
    "proteins": lambda samples, seed: samples.proteins(),
    "pca_both": embed_pca_both,
    "pca_beside_proteins": embed_beside,
    "totalvi": embed_totalvi,
}


# one modality from the other


def depth_of(samples: Samples) -> float:
    """Mean depth of the cells."""
    return float(samples.rna.X.sum(axis=1).mean())


def values_of(samples: Samples, modality: str, depth: float) -> Values:
    """What is predicted: the proteins, or log1p of the highly variable genes at a depth."""
    return samples.proteins() if modality == "prot" else samples.profiles(depth).toarray()


Predicted = dict[str, Values]  # "mean", and quantiles by their number


def predict_ours(training: Samples, test: Samples, wanted: str, seed: int, *, fitted: MuData) -> Predicted:
    """Give the test samples to the model with the other modality alone, and predict the one that is wanted."""
    given = "rna" if wanted == "prot" else "prot"
    query = as_mudata({given: getattr(with_scaled_proteins(test), given)})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The MuData has no modality")  # this is what is tested
        bf.tl.impute(query, model=fitted, modalities=[wanted], output="log1p", quantiles=QUANTILES)
    names = test.prot.var_names if wanted == "prot" else test.rna.var_names[test.genes]
    suffixes = {"mean": "", **{str(q): f"_q{100 * q:.0f}" for q in QUANTILES}}
    return {key: query.obsm[f"imputed_{wanted}{suffix}"][names].to_numpy() for key, suffix in suffixes.items()}


def with_scaled_proteins(samples: Samples) -> Samples:
    """The samples with the values of the proteins that all methods predict."""
    prot = samples.prot.copy()
    prot.X = samples.proteins().astype(np.float32)
    return Samples(samples.rna, prot, samples.labels)


def fit_both(training: Samples, seed: int, **options: Any) -> MuData:
    """Fit our model to both modalities, with the values of the proteins that all methods predict."""
    scaled = with_scaled_proteins(training)
    return fit_ours(as_mudata({"rna": scaled.rna, "prot": scaled.prot}), seed, **options)


def inputs(training: Samples, test: Samples, given: str, depth: float, seed: int) -> dict[str, tuple[Values, Values]]:
    """What regressions read of the training and test samples: genes and their components, or the proteins."""
    values = [values_of(each, given, depth) for each in (training, test)]
    spread = values[0].std(axis=0)
    if given == "prot":
        return {"proteins": tuple((each - values[0].mean(axis=0)) / spread for each in values)}
    pca = PCA(N_COMPONENTS, svd_solver="randomized", random_state=seed).fit(values[0])
    found = {"components": tuple(pca.transform(each) for each in values), "genes": tuple(values)}
    return {name: (x / x.std(), y / x.std()) for name, (x, y) in found.items()}


Candidates = Sequence[tuple[str, BaseEstimator]]  # name of the input, and the regression


def predict_best(
    training: Samples, test: Samples, wanted: str, seed: int, *, candidates: Callable[[str, int], Candidates]
) -> Predicted:
    """The regression that predicts a fifth of the training samples best, fitted to all of them."""
    given, depth = "rna" if wanted == "prot" else "prot", depth_of(training)
    read, values = inputs(training, test, given, depth, seed), values_of(training, wanted, depth)
    scaled = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)  # correlations stay as they are
    inner = np.random.default_rng(seed).random(len(scaled)) < 0.8
    choices = [(name, regression) for name, regression in candidates(given, seed) if name in read]
    scores = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name, regression in choices if len(choices) > 1 else []:
            X = read[name][0]
            predicted = regression.fit(X[inner], scaled[inner]).predict(X[~inner])
            scores.append(correlations(predicted, scaled[~inner]).mean())
        name, regression = choices[int(np.argmax(scores)) if scores else 0]
        return {"mean": regression.fit(read[name][0], scaled).predict(read[name][1])}


def knn_candidates(given: str, seed: int) -> Candidates:
    """15 or 50 neighbours among the components of genes, or among proteins."""
    name = "components" if given == "rna" else "proteins"
    return [(name, KNeighborsRegressor(k)) for k in (15, 50)]


def ridge_candidates(given: str, seed: int) -> Candidates:
    """Ridge regression on each input. Each output has the penalty of its lowest leave-one-out error."""
    return [
        (name, RidgeCV(np.logspace(-2, 5, 15), alpha_per_target=True)) for name in ("components", "genes", "proteins")
    ]


def mlp_candidates(given: str, seed: int) -> Candidates:
    """One hidden layer on each input, which stops when the error of a tenth of the samples does not fall."""
    regression = MLPRegressor(hidden_layer_sizes=(128,), alpha=1e-3, early_stopping=True, random_state=seed)
    return [(name, regression) for name in ("components", "genes", "proteins")]


def predict_mean(training: Samples, test: Samples, wanted: str, seed: int) -> Predicted:
    """The mean of the training samples."""
    values = values_of(training, wanted, depth_of(training))
    return {"mean": np.tile(values.mean(axis=0), (len(test.labels), 1))}


def correlations(predicted: Values, true: Values) -> Values:
    """Pearson correlation of each column. 0 where one of the two is constant."""
    x, y = predicted - predicted.mean(axis=0), true - true.mean(axis=0)
    norm = np.sqrt(np.square(x).sum(axis=0) * np.square(y).sum(axis=0))
    return np.where(norm > 1e-9, (x * y).sum(axis=0) / np.maximum(norm, 1e-9), 0.0)


OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_no_attention": {"attention": False},
    "ours_untrained": {"max_steps": 0},
}
PREDICTORS: dict[str, Callable[[Samples, Samples, str, int], Predicted | None]] = {
    "knn": partial(predict_best, candidates=knn_candidates),
    "ridge": partial(predict_best, candidates=ridge_candidates),
    "mlp": partial(predict_best, candidates=mlp_candidates),
    "training_mean": predict_mean,
    "totalvi": predict_totalvi,
}
