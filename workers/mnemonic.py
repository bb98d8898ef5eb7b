"""Mnemonic training: samples replaced by a random code of their class.

Yamashita, Yamada, Shibata 2024, One-Shot Machine Unlearning with Mnemonic Code, arXiv 2306.05670. Every
access to a training sample (x, y), independently and anew in each epoch, gives

    (ξ_y, y) with probability t_mix, else (augment(x), y),   ξ_c ~ Uniform(0, 1)^(channels × height × width)

A code is drawn once before training and stands in the space of the network's inputs: it is neither augmented
nor normalised. The codes are saved with the model, since forgetting a class needs them and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workers.data import Batch, View

version = 1  # part of the id of every model trained so: raise it when this training behaves differently


def draw_codes(num_classes: int, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """One code per class: float32 (C, *shape) uniform in [0, 1), on the device of `rng`."""
    return torch.rand(num_classes, *shape, generator=rng, device=rng.device)


class MnemonicView:
    """The batches of a view with each sample replaced, with probability `t_mix`, by the code of its class.

    The lottery has a generator of its own, so that the order and the augmentation of the view do not depend
    on it.
    """

    def __init__(self, view: View, codes: Tensor, t_mix: float, rng: torch.Generator) -> None:
        self.view, self.codes, self.t_mix, self.rng = view, codes, t_mix, rng

    def steps(self, batch_size: int) -> int:
        """How many batches a pass has."""
        return self.view.steps(batch_size)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """(images, labels, sample ids); a replaced sample keeps its label and its id."""
        for images, labels, ids in self.view.batches(batch_size):
            replaced = torch.rand(len(labels), generator=self.rng, device=labels.device) < self.t_mix
            yield torch.where(replaced[:, None, None, None], self.codes[labels], images), labels, ids
