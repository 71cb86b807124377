"""Metric learning: losses on embeddings, pairs, triplets and views."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...errors import TrainingError
from ..inputs import EMBEDDINGS, PAIRS, TRIPLETS, VIEWS
from ..loss import safe_sqrt
from ..registries import losses

_FACENET = "Schroff et al. 2015, FaceNet: A Unified Embedding for Face Recognition and Clustering, arXiv:1503.03832"
_MARGIN = ("by how much the negative must be farther, in units of distance", "PyTorch's default: 1", "[0, inf)")


@losses.register(
    "contrastive",
    kind="metric learning",
    takes=PAIRS,
    source="Hadsell, Chopra and LeCun 2006, Dimensionality Reduction by Learning an Invariant Mapping, "
    "doi:10.1109/CVPR.2006.100: there, too, 0 means similar (many libraries have it the other way round)",
    about={"margin": ("from which distance dissimilar pairs cost nothing", "chosen by us: 1", "[0, inf)")},
)
def contrastive(outputs: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Half the squared distance of similar pairs (0), of the shortfall below a margin of dissimilar ones (1)."""
    squared = (outputs[0] - outputs[1]).square().sum(1)
    short = (margin - safe_sqrt(squared)).clamp(min=0).square()
    y = target.to(squared.dtype)
    return 0.5 * ((1 - y) * squared + y * short).mean()


@losses.register(
    "triplet",
    kind="metric learning",
    takes=TRIPLETS,
    source=_FACENET + " (here with distances, not their squares, as torch.nn.TripletMarginLoss has it)",
    about={"margin": _MARGIN},
    torch="torch.nn.functional.triplet_margin_loss",
    doc="Shortfall of the negative's distance below the positive's plus a margin, for given triplets.",
)
def triplet(
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], target: None, margin: float = 1.0
) -> torch.Tensor:
    return F.triplet_margin_loss(*outputs, margin=margin)


def _distances(x: torch.Tensor) -> torch.Tensor:
    return safe_sqrt((x[:, None] - x[None, :]).square().sum(2))


def _same(labels: torch.Tensor, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which pairs are positives and negatives, (n, n); raises TrainingError where a batch lacks either."""
    alike = labels[:, None] == labels[None, :]
    positive = alike & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if not bool(positive.any()) or bool(alike.all()):
        raise TrainingError(
            f"{what} finds no triplet in a batch of {len(labels)}: it needs two samples of one class and one of another"
        )
    return positive, ~alike


@losses.register(
    "triplet_hard",
    kind="metric learning",
    takes=EMBEDDINGS,
    rebatch=False,
    source="Hermans, Beyer and Leibe 2017, In Defense of the Triplet Loss for Person Re-Identification, "
    "arXiv:1703.07737",
    about={"margin": _MARGIN},
)
def triplet_hard(outputs: torch.Tensor, target: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Triplet loss with, for each anchor of the batch, its farthest positive and its nearest negative."""
    positive, negative = _same(target, "triplet_hard")
    d = _distances(outputs)
    farthest = d.masked_fill(~positive, -torch.inf).amax(1)
    nearest = d.masked_fill(~negative, torch.inf).amin(1)
    anchors = positive.any(1) & negative.any(1)
    return (farthest[anchors] - nearest[anchors] + margin).clamp(min=0).mean()


@losses.register(
    "triplet_semi_hard",
    kind="metric learning",
    takes=EMBEDDINGS,
    rebatch=False,
    source=_FACENET + " (section 3.2; the farthest negative where none is farther than the positive)",
    about={"margin": _MARGIN},
)
def triplet_semi_hard(outputs: torch.Tensor, target: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Triplet loss over all positive pairs, with the nearest negative that is farther than the positive.

    Memory grows with the cube of the batch: 256 samples take 130 MB in float64.
    """
    positive, negative = _same(target, "triplet_semi_hard")
    d = _distances(outputs)
    anchors = positive & negative.any(1, keepdim=True)
    beyond = negative[:, None, :] & (d[:, None, :] > d[:, :, None])
    nearest = d[:, None, :].expand_as(beyond).masked_fill(~beyond, torch.inf).amin(2)
    farthest = d.masked_fill(~negative, -torch.inf).amax(1, keepdim=True).expand_as(d)
    chosen = torch.where(beyond.any(2), nearest, farthest)
    return (d[anchors] - chosen[anchors] + margin).clamp(min=0).mean()


@losses.register(
    "info_nce",
    kind="metric learning",
    takes=VIEWS,
    rebatch=False,
    source="van den Oord, Li and Vinyals 2018, Representation Learning with Contrastive Predictive Coding, "
    "arXiv:1807.03748; on cosines, as in He et al. 2020 (MoCo), arXiv:1911.05722",
    about={"temperature": ("what the cosines are divided by", "MoCo's: 0.07", "(0, inf)")},
)
def info_nce(outputs: tuple[torch.Tensor, torch.Tensor], target: None, temperature: float = 0.07) -> torch.Tensor:
    """Cross-entropy of finding each row's partner among all rows of the second view."""
    a, b = (F.normalize(o, dim=1) for o in outputs)
    return F.cross_entropy(a @ b.T / temperature, torch.arange(len(a), device=a.device))


@losses.register(
    "nt_xent",
    kind="metric learning",
    takes=VIEWS,
    rebatch=False,
    source="Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709",
    about={"temperature": ("what the cosines are divided by", "the paper's best on CIFAR-10: 0.5", "(0, inf)")},
)
def nt_xent(outputs: tuple[torch.Tensor, torch.Tensor], target: None, temperature: float = 0.5) -> torch.Tensor:
    """Normalized temperature-scaled cross-entropy of finding each row's partner among all rows of both views."""
    z = F.normalize(torch.cat(list(outputs)), dim=1)
    n = len(outputs[0])
    own = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy((z @ z.T / temperature).masked_fill(own, -torch.inf), partner)


def _pair_similarities(x: torch.Tensor, labels: torch.Tensor, what: str) -> tuple[torch.Tensor, ...]:
    positive, negative = _same(labels, what)
    z = F.normalize(x, dim=1)
    return z @ z.T, positive, negative


def circle_of(
    s: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    margin: float = 0.25,
    gamma: float = 256.0,
    exact: bool = False,
) -> torch.Tensor:
    """Return the circle loss of each row of similarities (n, m), whose pairs are marked positive and negative."""
    held = s if exact else s.detach()
    pull, push = (1 + margin - held).clamp(min=0), (held + margin).clamp(min=0)
    p = (-gamma * pull * (s - (1 - margin))).masked_fill(~positive, -torch.inf).logsumexp(1)
    n = (gamma * push * (s - margin)).masked_fill(~negative, -torch.inf).logsumexp(1)
    return F.softplus(p + n)


@losses.register(
    "circle",
    kind="metric learning",
    takes=EMBEDDINGS,
    rebatch=False,
    trial={"exact": True, "gamma": 8.0},
    source="Sun et al. 2020, Circle Loss: A Unified Perspective of Pair Similarity Optimization, arXiv:2002.10857",
    about={
        "margin": ("m", "the paper's for faces: 0.25"),
        "gamma": ("scale", "the paper's for faces: 256", "(0, inf)"),
        "exact": (
            "True: also differentiate the weights of the pairs, which the paper holds fixed",
            "the paper's: False",
        ),
    },
)
def circle(
    outputs: torch.Tensor, target: torch.Tensor, margin: float = 0.25, gamma: float = 256.0, exact: bool = False
) -> torch.Tensor:
    """Circle loss on cosines, each pair weighted by its distance from its optimum; mean over the anchors with both."""
    s, positive, negative = _pair_similarities(outputs, target, "circle")
    anchors = positive.any(1) & negative.any(1)
    return circle_of(s[anchors], positive[anchors], negative[anchors], margin, gamma, exact).mean()


def multi_similarity_of(
    s: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
) -> torch.Tensor:
    """Return the multi-similarity loss of each row of similarities (n, m)."""
    zero = s.new_zeros(len(s), 1)
    p = torch.cat([zero, (-alpha * (s - base)).masked_fill(~positive, -torch.inf)], 1).logsumexp(1)
    n = torch.cat([zero, (beta * (s - base)).masked_fill(~negative, -torch.inf)], 1).logsumexp(1)
    return p / alpha + n / beta


@losses.register(
    "multi_similarity",
    kind="metric learning",
    takes=EMBEDDINGS,
    rebatch=False,
    source="Wang et al. 2019, Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, "
    "arXiv:1904.06627",
    about={
        "alpha": ("steepness for positives", "the paper's: 2", "(0, inf)"),
        "beta": ("steepness for negatives", "the paper's: 50", "(0, inf)"),
        "base": ("the similarity that both are held to", "the authors' code: 0.5"),
        "epsilon": ("keep pairs within this of the hardest of the other kind; None keeps all", "the paper's: 0.1"),
    },
)
def multi_similarity(
    outputs: torch.Tensor,
    target: torch.Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
) -> torch.Tensor:
    """Multi-similarity loss on cosines, after mining the informative pairs; mean over the batch."""
    s, positive, negative = _pair_similarities(outputs, target, "multi_similarity")
    if epsilon is not None:
        weakest = s.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        strongest = s.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        positive, negative = positive & (s < strongest + epsilon), negative & (s > weakest - epsilon)
    return multi_similarity_of(s, positive, negative, alpha, beta, base).mean()
