"""What encoder and decoder share: embeddings, the bag, and output layers (paper, sections 2.1.4 and 2.2).

:mod:`scbioformers.nn._encoder` and :mod:`scbioformers.nn._decoder` say which tokens attend to which.

Letters in shapes: B cells, C context (visible) tokens, H masked tokens, T = 1 + P + C + H all tokens,
P phenotypes, M modelled features, D width, L latent, A attention heads, V bin values, K modalities. Features, bins and
answers of all modalities are on one axis each, one modality after the other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from scbioformers.config import ModelConfig
from scbioformers.core import SPECIALS
from scbioformers.nn._batch import Batch
from scbioformers.nn._blocks import TransformerBlock, ValueEmbedding
from scbioformers.nn._phenotypes import Phenotype, rows_at
from scbioformers.nn._sizes import PART_OF, Sizes


@dataclass(frozen=True)
class Output:
    """Output of the network for a batch."""

    log_probs: Tensor
    """(B, H, V), log probabilities of the bins of the masked features."""
    context: Tensor | None
    """(B, C, D), contextual embeddings of the visible features. ``None`` without ``contextual=True``."""
    cls: Tensor
    """(B, D), output of the ``<cls>`` token."""
    phenotypes: Tensor
    """(B, P, D), outputs of the tokens of the phenotypes."""
    latent: Tensor
    """(B, L), latent from which the profile is decoded."""
    log_rate: Tensor
    """(B, M), log of the expected count at the mean depth. If the data are not counts: logit of the expected bin."""


def batch_vectors(table: Tensor, codes: Tensor | None) -> Tensor:
    """Row of ``table`` (n_batches, D) for each cell, (B, D), or for the average batch, (D,), if ``codes`` is ``None``.

    ``codes`` (B,) are the technical batches of the cells. A negative code also stands for the average batch: the cell
    is of a batch that was not in the training data, or of an unknown one. The average batch is the mean over all
    batches of the training data, whatever their numbers of cells. It is a function of the weights alone, so it does not
    depend on the other cells.
    """
    average = table.mean(dim=0)
    if codes is None:
        return average
    return torch.where((codes < 0)[:, None], average, functional.embedding(codes.clamp(min=0), table))


class Transformer(nn.Module, ABC):
    """Predicts the bins of the masked features, and the profile of the whole cell from ``<cls>``."""

    profile_mean: Tensor
    bag_scale: Tensor
    bag_size: Tensor
    batch_shift: Tensor
    bag_weight: Tensor
    temperature: Tensor
    external_code: Tensor

    def __init__(self, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes
        width, n_specials = config.width, len(SPECIALS)
        self.feature = nn.Embedding(n_specials + sizes.n_features, width, padding_idx=0)
        first, *others = sizes.modalities
        self.value = ValueEmbedding(config.value_embedding, first.n_values, width)
        if others:
            self.other_values = nn.ModuleList(
                ValueEmbedding(config.value_embedding, part.n_values, width) for part in others
            )
            self.modality = nn.Embedding(len(sizes.parts), width)
            self.register_buffer("bag_weight", torch.ones(sizes.n_features))
        if sizes.n_external:  # row 0 is that of features without an external token
            self.external = nn.Embedding(sizes.n_external + 1, width, padding_idx=0)
            self.register_buffer("external_code", torch.zeros(n_specials + sizes.n_features))
        self.phenotypes = nn.ModuleList(
            Phenotype(n, width, sizes.n_features, config.n_latent) for n in sizes.phenotype_sizes
        )
        self.cls = nn.Parameter(torch.empty(width))
        self.mask = nn.Parameter(torch.empty(width))
        self.depth = nn.Sequential(nn.Linear(1 + len(others), width), nn.GELU(), nn.Linear(width, width))
        if config.bag:
            if sizes.n_batches:
                # not trained: the latent would learn the batch through it
                self.register_buffer("batch_shift", torch.zeros(sizes.n_batches, width))
            self.bag_to_cls = nn.Linear(width, width, bias=False)
            self.bag_to_masked = nn.Linear(width, width, bias=False)
            self.bag_to_latent = nn.Linear(width, config.n_latent, bias=False)
            if others:  # for each choice of modalities that are known, but not all
                n_choices = 2 ** len(sizes.parts) - 2
                self.complete = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(n_choices))
        self.register_buffer("profile_mean", torch.zeros(sizes.n_features))
        self.register_buffer("bag_scale", torch.ones(width))
        # numbers of features of the first fit, of each modality
        columns = torch.tensor(sizes.columns, dtype=torch.float32)
        self.register_buffer("bag_size", columns if others else columns[0].clone())
        # fitted to validation cells after the training, for each modality
        self.register_buffer("temperature", torch.ones((len(sizes.parts), 2) if others else ()))
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(width)
        if sizes.n_small_counts:
            self.small_counts = nn.Linear(sizes.n_small_counts * sizes.n_values, width, bias=False)
        self.rate_feature_in, self.rate_feature_out = nn.Linear(3, width), nn.Linear(width, width)
        self.rate_feature_inner = nn.Linear(width, width)
        n_answers = sizes.n_values + sizes.n_small_counts
        self.bin_inner, self.bin_out = nn.Linear(width, width), nn.Linear(width, n_answers)
        self.bin_bias = nn.Embedding(n_specials + sizes.n_features, n_answers)
        self.latent_inner, self.latent_out = nn.Linear(width, width), nn.Linear(width, config.n_latent)
        self.latent_norm = nn.LayerNorm(config.n_latent, elementwise_affine=False)
        if sizes.n_batches:
            self.batch_rate = nn.Embedding(sizes.n_batches, sizes.n_features)
        self.from_latent = nn.Sequential(nn.Linear(config.n_latent, width), nn.GELU())
        self.rate = nn.Linear(width, sizes.n_features)
        self.linear_rate = nn.Linear(config.n_latent, sizes.n_features, bias=False)
        self.log_dispersion = nn.Parameter(torch.empty(sizes.n_features))

    @abstractmethod
    def forward(self, batch: Batch, *, contextual: bool = False) -> Output:
        """Compute the outputs for a batch. With ``contextual``, also those of the visible features."""

    @abstractmethod
    def attend(self, batch: Batch, layers: Collection[int]) -> Iterator[Tensor]:
        """Attention weights (B, A, C, C) between visible features, for each of ``layers``. Rows are queries."""

    def freeze(self, parts: Collection[str]) -> None:
        """Set which parameters are trained: all but those of ``parts``, see ``PART_OF``."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(PART_OF[name.split(".", 1)[0]] not in parts)

    def bag(self, batch: Batch) -> Tensor:
        """Sum of the embeddings of *all* known features, weighted by the deviation from their mean, -> (B, D).

        It is divided by the number of known features, relative to that of the features that the model was first fitted
        to. So its scale does not depend on how many are known, and features that are added later change nothing where
        they are not measured.
        """
        departure = (batch.visible - self.profile_mean) * batch.known
        if self.sizes.parts:
            # of each modality by itself, so that a modality that is not known changes nothing in that of the others
            known = zip(batch.known.float().split_with_sizes(self.sizes.columns, dim=1), self.bag_size, strict=True)
            share = [(x.sum(dim=1, keepdim=True) / size).clamp(min=0.05).expand_as(x) for x, size in known]
            departure = departure * self.bag_weight / torch.cat(share, dim=1)
        # the table may have more rows, for perturbed features that are not measured
        features = self.feature.weight[len(SPECIALS) : len(SPECIALS) + self.sizes.n_features]
        bag = departure @ features / self.bag_scale
        if self.sizes.parts:
            return self._completed(bag, self.is_known(batch))
        return bag / (batch.known.float().sum(dim=1, keepdim=True) / self.bag_size).clamp(min=0.05)

    def is_known(self, batch: Batch) -> Tensor:
        """(B, K), whether something of each modality is known in a cell."""
        return torch.stack([part.any(dim=1) for part in batch.known.split_with_sizes(self.sizes.columns, dim=1)], dim=1)

    def _completed(self, bag: Tensor, known: Tensor) -> Tensor:
        """Predict the bag of all modalities from that of those which are ``known`` (B, K) in a cell."""
        choice = (known * 2 ** torch.arange(known.shape[1], device=bag.device)).sum(dim=1)
        for i, layer in enumerate(self.complete, start=1):
            bag = torch.where((choice == i)[:, None], layer(bag), bag)
        return bag

    def modality_of(self, ids: Tensor) -> Tensor:
        """Number of the modality of each feature, by its vocabulary id. Padding is of the first one."""
        ends = torch.tensor(self.sizes.columns, device=ids.device).cumsum(0)[:-1]
        return torch.bucketize(ids - len(SPECIALS), ends, right=True)

    def features(self, ids: Tensor) -> Tensor:
        """Embedding of each feature, with those of its external token and, if there are several, of its modality."""
        embedded = self.feature(ids)
        if self.sizes.n_external:
            # perturbed features that are not measured have ids after the others, and no external token
            known = ids.clamp(max=len(self.external_code) - 1)
            embedded = embedded + self.external((self.external_code[known] * (ids == known)).long())
        return embedded + self.modality(self.modality_of(ids)) if self.sizes.parts else embedded

    def values(self, bins: Tensor) -> Tensor:
        """Embedding of each bin."""
        if not self.sizes.parts:
            return self.value(bins)
        tables = [cast("ValueEmbedding", each).values() for each in (self.value, *self.other_values)]
        return functional.embedding(bins, torch.cat(tables))

    def corrected(self, bag: Tensor, batch: Batch) -> Tensor:
        """Correct the bag for the technical batch and the phenotypes of the cell, (B, D) -> (B, D).

        The decoder is conditioned on them, so the latent need not contain them.
        """
        if self.sizes.n_batches:
            bag = bag + batch_vectors(self.batch_shift, batch.batch_codes)
        for phenotype, positions in self._phenotypes_at(batch.phenotypes):
            bag = bag + rows_at(phenotype.shift, positions)
        return bag

    def _phenotypes_at(self, positions: Tensor) -> Iterator[tuple[Phenotype, Tensor]]:
        """Each phenotype, and its positions (B,) of those of all phenotypes (B, P)."""
        return zip(cast("list[Phenotype]", self.phenotypes), positions.unbind(dim=1), strict=True)

    def context_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings of the visible features (Eq. 7): distinct tokens (W, D), and the row of each token (B, C).

        A token is a combination of feature, bin and external token. Its embedding is the same in all cells, and a batch
        has far fewer distinct tokens than tokens.
        """
        code, n_values = batch.context_ids * self.sizes.n_values + batch.context_bins, self.sizes.n_values
        if batch.external is None or batch.context_external is None:
            code, which = torch.unique(code, return_inverse=True)
            return self.features(code // n_values) + self.values(code % n_values), which
        n_external = len(batch.external)
        code, which = torch.unique(code * n_external + batch.context_external, return_inverse=True)
        external, code = batch.external[code % n_external], code // n_external
        return self.features(code // n_values) + self.values(code % n_values) + external, which

    def answers(self, number: int, output: Output) -> Tensor:
        """(B, n), probabilities of the categories of a phenotype."""
        return cast("Phenotype", self.phenotypes[number]).answer(output.phenotypes[:, number]).softmax(dim=-1)

    def bin_log_probs(self, masked: Tensor, batch: Batch) -> Tensor:
        """Log probabilities of the bins of the masked features, (B, H, D) -> (B, H, V).

        The head answers with a bin or with a small count. The bin of a small count depends on the depth of the whole
        cell alone, so its probability is divided among its bins at the likely depths.
        """
        log_probs = self.answer_log_probs(masked, batch)
        if self.sizes.n_small_counts:
            n_values, probs = self.sizes.n_values, log_probs.exp()
            bins, counts = probs[..., :n_values], probs[..., n_values:]
            log_probs = (bins + self.at_likely_depths(counts, batch)).clamp(min=1e-12).log()
        if self.training:
            return log_probs
        temperature = self.temperature
        if self.sizes.parts:
            modality = self.modality_of(batch.masked_ids)
            temperature = temperature[modality, self.is_known(batch).long().gather(1, modality)][..., None]
        return functional.log_softmax(log_probs / temperature, dim=-1)

    def answer_log_probs(self, masked: Tensor, batch: Batch) -> Tensor:
        """Log probabilities of the answers of the head, (B, H, D) -> (B, H, V + C): bins, then small counts."""
        logits = self.bin_out(functional.gelu(self.bin_inner(masked))) + self.bin_bias(batch.masked_ids)
        if self.sizes.parts:
            logits = logits.masked_fill(self._foreign_answers(batch.masked_ids), -torch.inf)
        return functional.log_softmax(logits, dim=-1)

    def at_likely_depths(self, counts: Tensor, batch: Batch) -> Tensor:
        """Probabilities of small counts (B, H, C), as those of their bins (B, H, V)."""
        return counts @ batch.small_count_bins

    def _foreign_answers(self, ids: Tensor) -> Tensor:
        """(B, H, V + C), whether an answer is a bin or a small count of another modality than that of the feature."""
        n_bins, n_counts = (
            [getattr(part, name) for part in self.sizes.parts] for name in ("n_values", "n_small_counts")
        )
        numbers = torch.arange(len(self.sizes.parts), device=ids.device)
        owner = torch.cat([numbers.repeat_interleave(torch.tensor(n, device=ids.device)) for n in (n_bins, n_counts)])
        return self.modality_of(ids)[..., None] != owner

    def rate_features(self, log_rate: Tensor, batch: Batch) -> Tensor:
        """Embed the rate of each masked feature, predicted from ``<cls>``, and the depth, (B, M) -> (B, H, D).

        A rate is a product of a cell factor and a feature factor. Sums of embeddings and a feed-forward layer learn
        products slowly, so the rate is an explicit input. The bins of small counts are step functions of the depth, so
        they are inputs too.
        """
        features = (batch.masked_ids - len(SPECIALS)).clamp(min=0)
        rate = log_rate.gather(1, features)
        depth = batch.log_depth.view(len(batch), -1)
        depth = depth.gather(1, self.modality_of(batch.masked_ids)) if self.sizes.parts else depth.expand_as(rate)
        return self.embed_rates(rate, features, depth, batch.small_count_bins[:, None])

    def embed_rates(self, rate: Tensor, features: Tensor, depth: Tensor, small_count_bins: Tensor) -> Tensor:
        """Embed the rates of features, all (B, H), and the bins of small counts (B, H or 1, C, V), -> (B, H, D)."""
        h = self.rate_feature_in(torch.stack([rate, rate - self.rate.bias[features], depth], dim=-1))
        if self.sizes.n_small_counts:
            h = h + self.small_counts(small_count_bins.flatten(2))
        return self.rate_feature_out(functional.gelu(self.rate_feature_inner(functional.gelu(h))))

    def decode(self, latent: Tensor, batch_codes: Tensor | None, phenotypes: Tensor) -> Tensor:
        """Decode the latent to the log of the expected count of every feature at the mean depth, (B, L) -> (B, M).

        Each technical batch has a factor for the rate of every feature, see ``batch_vectors`` for ``batch_codes`` (B,).
        So has each phenotype (B, P), and a part that depends on the latent.
        """
        inner = self.from_latent[0](latent)
        for each, at in self._phenotypes_at(phenotypes):
            inner = inner + rows_at(each.inner.weight, at)
        rate = self.rate(self.from_latent[1](inner)) + self.linear_rate(latent)
        for each, at in self._phenotypes_at(phenotypes):
            rate = rate + rows_at(each.rate.weight, at)
        return rate + batch_vectors(self.batch_rate.weight, batch_codes) if self.sizes.n_batches else rate

    def moved(self, latent: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """Latent (B, L) that the same cells would have under other phenotypes (B, P) than their own.

        The latent still holds a part of the phenotypes, which is added here. See ``fit_latent_shifts`` in training.
        """
        for (phenotype, before), (_, after) in zip(self._phenotypes_at(own), self._phenotypes_at(other), strict=True):
            latent = latent + (rows_at(phenotype.latent_shift, after) - rows_at(phenotype.latent_shift, before))
        return latent

    def profile(self, latent: Tensor, phenotypes: Tensor) -> Tensor:
        """Decoded profile for the average batch, (B, L) and (B, P) -> (B, M): log1p of the expected counts.

        The counts are at the mean depth. For data that are not counts: the expected bin as a share of the highest bin.
        """
        rates = self.decode(latent, None, phenotypes).split_with_sizes(self.sizes.columns, dim=1)
        parts = zip(self.sizes.modalities, rates, strict=True)
        return torch.cat([functional.softplus(x) if part.counts else torch.sigmoid(x) for part, x in parts], dim=1)
