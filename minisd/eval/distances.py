"""How far generated pictures are from real ones: as a whole (Fréchet distance), and each from its nearest.

In: features (n, f), or pictures. Out: distances.
"""

import torch
from torch import Tensor


def frechet(one: Tensor, other: Tensor) -> float:
    """The Fréchet distance of the Gaussians with the mean and covariance of features (n, f) and (m, f):
    |mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Dowson & Landau 1982, https://doi.org/10.1016/0047-259X(82)90077-X; Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500 (on Inception's features, which these are not). Few samples make it too large, by
    about f / n of the features' own variance: compare only figures of the same n (Chong & Forsyth 2020,
    https://arxiv.org/abs/1911.07023).
    """
    (mean1, root1), (mean2, root2) = (moments(x.double()) for x in (one, other))
    spread = root1.square().sum() + root2.square().sum()
    # tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2): all roots are of symmetric matrices.
    return float((mean1 - mean2).square().sum() + spread - 2 * torch.linalg.svdvals(root1 @ root2).sum())


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (f,) and the symmetric root (f, f) of the covariance of features (n, f)."""
    values, vectors = torch.linalg.eigh(x.T.cov(correction=1))
    return x.mean(0), (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def nearest(one: Tensor, other: Tensor, batch: int = 256) -> Tensor:
    """Of each of (n, f) the Euclidean distance to the nearest of (m, f): (n,)."""
    return torch.cat([torch.cdist(part, other).min(1).values for part in one.flatten(1).split(batch)])
