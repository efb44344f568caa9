"""One sign in all places: what a positive weight means in varp, in the tables, in the figures, and in a knock-out."""

import anndata as ad
import numpy as np
import pytest
from matplotlib.colors import to_rgba

import scbioformers as bf

FACTORS = ["TF1", "TF2", "TF3", "TF4"]


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    """Cells in which each regulator was knocked down in turn, and the effects of these knock-downs."""
    adata = bf.datasets.simulate(300, 30, n_regulators=4, perturbations=FACTORS, rng=3)
    config = bf.ModelConfig(width=16, n_heads=2, n_latent=8, n_components=8)
    task = bf.Perturbation(key="perturbation", control="control")
    bf.tl.fit(adata, task=task, config=config, train=bf.TrainConfig(max_steps=60, batch_size=32))
    bf.tl.perturb(adata, FACTORS)
    return adata


@pytest.mark.parametrize("method", ["knockout", "embedding"])
def test_a_positive_weight_is_a_target_that_falls_in_a_knock_out(adata, method):
    bf.tl.grn(adata, method=method, regulators=FACTORS, top_k=12)
    edges, matrix = bf.get.grn(adata), bf.get.grn_matrix(adata)
    assert {-1, 1} == set(np.sign(edges["weight"]))
    lowered, measured = [], []
    x = np.log1p(adata.X.toarray() / adata.X.toarray().sum(axis=1, keepdims=True) * 60)
    for edge in edges.itertuples():
        row, column = adata.var_names.get_loc(edge.target), adata.var_names.get_loc(edge.source)
        assert adata.varp["grn"][row, column] == pytest.approx(edge.weight, rel=1e-6)
        assert matrix.loc[edge.target, edge.source] == pytest.approx(edge.weight, rel=1e-6)
        effect = bf.get.perturb(adata, perturbation=edge.source).set_index("gene")["effect"][edge.target]
        if abs(effect) > 0.3:  # the others are within the noise of 60 cells
            of = [x[adata.obs["perturbation"] == label, row].mean() for label in (edge.source, "control")]
            lowered.append((effect < 0) == (edge.weight > 0))
            measured.append((of[0] < of[1]) == (edge.weight > 0))
    assert len(lowered) >= 5
    assert np.mean(lowered) >= 0.8 and np.mean(measured) >= 0.8  # with the other sign it would be at most 0.2


@pytest.mark.parametrize("method", ["knockout", "embedding"])
def test_red_means_activation_in_both_figures(adata, method):
    bf.tl.grn(adata, method=method, regulators=FACTORS, top_k=12)
    source = bf.get.grn(adata)["source"][0]
    ax = bf.pl.grn_network(adata, n_top=12)
    legend = {line.get_label(): to_rgba(line.get_color()) for line in ax.get_legend().legend_handles[2:4]}
    drawn = [patch.get_edgecolor() for patch in ax.patches if patch.get_zorder() == 2]
    weights = [edge["weight"] for edge in bf.get.grn_graph(adata, n_top=12).edges.values()]
    assert drawn == [legend["activation" if weight > 0 else "repression"] for weight in weights]
    assert legend["activation"][0] > legend["activation"][2]  # more red than blue
    (ax,) = bf.pl.attention_heatmap(adata, source, n_top=29)
    image = ax.images[0]
    assert "positive: activates, a knock-out lowers the target" in image.colorbar.ax.get_ylabel()
    weight = bf.get.grn_matrix(adata)[source]
    for name, value in zip([label.get_text() for label in ax.get_yticklabels()], image.get_array()[:, 0], strict=True):
        red, _, blue, _ = image.cmap(image.norm(value))
        assert (red > blue) == (weight[name] > 0)
