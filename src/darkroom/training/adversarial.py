"""An autoencoder against a discriminator: the losses of both, and the weight between two losses.

Shapes: N pictures, p q rows and columns of patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .parallel import sum_over_ranks

LARGEST = 1e4  # of the adaptive weight
TINY = 1e-4  # keeps it from dividing by nothing


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """The hinge loss of a discriminator's answers [N, 1, p, q] (Lim & Ye 2017, arXiv 1705.02894, eq. 11): a scalar.

    Nothing is gained by calling a real patch more than 1, or a made one less than -1.
    """
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean())


def deceiver_loss(made: Tensor) -> Tensor:
    """What an autoencoder minimises against it: minus the mean of the answers to what it made."""
    return -made.float().mean()


def adaptive_weight(reconstruction: Tensor, deception: Tensor, last: Tensor) -> Tensor:
    """How much an adversarial loss counts beside a reconstruction's: a detached scalar in 0..10,000.

    lambda = |grad(reconstruction)| / (|grad(deception)| + 1e-4), gradients by the weights of the decoder's `last` layer
    (Esser et al. 2021, arXiv 2012.09841, eq. 7; the constant is that of their code): both losses then pull at it alike.
    The gradients are those of all processes' rows together. The losses can still be gone back through afterwards.
    """
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (against,) = torch.autograd.grad(deception, last, retain_graph=True)
    # autograd may hand out one tensor twice, or a view of one: what is summed in place must be ours.
    both = [wanted.float().clone(), against.float().clone()]
    sum_over_ranks(both)
    weight: Tensor = (both[0].norm() / (both[1].norm() + TINY)).clamp(0.0, LARGEST)
    return weight.detach()
