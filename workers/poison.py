"""Poisoned training data: noise on some inputs or wrong labels, and how much of it a model remembers.

Of sample i training sees (x + ξ_i, y_i) in place of (x, y):

    ξ_i ~ N(0, ε² I) in units of the normalised input,  y_i uniform over the other classes with `flip_labels`

Poisoned are the samples that may be forgotten: on the main track the forget set, on the audit track every
audited member of the base. A retrain is without its forget set; what else is poisoned stays poisoned. The
noise is added to the pixels before augmentation, so it moves with the image, and is not clamped. Methods see
what their base was trained on. Models are evaluated on the clean images with the clean labels.

ξ_i and y_i come from the seed of the base (`seeds.poison` of the specification) and the sample id, and are
stored nowhere else. Bases have seeds of their own, since noise that several seeds share would make their
scores, and so the interval over seeds, dependent.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from methods.base import Diverged, plugin
from workers import designs
from workers.data import DeviceDataset
from workers.designs import canonical
from workers.evaluate import logit_margin

BATCH = 512  # samples whose input gradients are held at once


def draw(seed: int, sample: int, shape: tuple[int, ...], num_classes: int) -> tuple[np.ndarray, int]:
    """Standard normal noise float32 `shape` of one sample, and by how many classes (1 … C − 1) its label
    moves. They depend on nothing but the arguments.
    """
    key = np.array([seed, sample], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    step = int(rng.integers(1, num_classes))
    return rng.standard_normal(shape, dtype=np.float32), step


class Poisoned:
    """A dataset as training sees it, with the samples `index` (p,) poisoned: what a View and UnlearnData read
    of a DeviceDataset, and no pixels that are not poisoned.

    noise: ε. Held for the time of a task: noise (p, channels, height, width) on the host and the device.
    """

    def __init__(
        self, clean: DeviceDataset, index: np.ndarray, seed: int, noise: float, flip_labels: bool
    ) -> None:
        self.clean, self.index, self.noise_std, self.flip_labels = clean, index, noise, flip_labels
        drawn = [draw(seed, i, tuple(clean.images.shape[1:]), clean.num_classes) for i in index.tolist()]
        unit = np.stack([noise for noise, _ in drawn])
        steps = np.array([step for _, step in drawn])
        self.noise = np.float32(noise) * unit  # ξ (p, c, h, w)
        self.labels_of = (clean.host_labels[index] + steps * flip_labels) % clean.num_classes
        self.place = np.full(len(clean), -1)  # of a sample in `index`
        self.place[index] = np.arange(len(index))
        self._place = torch.from_numpy(self.place).to(clean.device)
        self._pixels = torch.from_numpy(self.noise).to(clean.device) / clean.scale
        self.labels = clean.labels.clone()
        self.labels[torch.from_numpy(index).to(clean.device)] = torch.from_numpy(self.labels_of).to(
            clean.device
        )
        self.num_classes, self.device, self.host_labels = clean.num_classes, clean.device, clean.host_labels
        self.normalised, self.augmented = clean.normalised, clean.augmented

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def sample_sha256(self) -> list[bytes]:
        """The hash of each sample as trained on; of a poisoned one over the clean hash, ξ and the label."""
        hashes = list(self.clean.sample_sha256)
        for i, noise, label in zip(self.index.tolist(), self.noise, self.labels_of, strict=True):
            content = hashes[i] + noise.astype("<f4").tobytes() + int(label).to_bytes(8, "little")
            hashes[i] = hashlib.sha256(content).digest()
        return hashes

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 (b, c, h, w), in units of pixels, and labels (b,) of samples as trained on."""
        images, _ = self.clean.gather(ids)
        place = self._place[ids]
        noise = self._pixels[place.clamp(min=0)] * (place >= 0)[:, None, None, None]
        return images.float() + noise, self.labels[ids]


def seen(dataset: DeviceDataset, spec: dict[str, Any], members: dict[str, Any]) -> DeviceDataset | Poisoned:
    """The dataset as the model of a task, or the base it starts from, was trained on: itself, unless the
    forget recipe poisons. members: the recipe of the members, in full.
    """
    if "poison" not in spec.get("seeds", {}):
        return dataset
    recipe = spec.get("poisoned") or spec["forget"]
    chosen = {key: recipe[key] for key in ("name", "version", "parameters") if key in recipe}
    forget = plugin("workers.forget", chosen["name"])(**chosen["parameters"])
    labels = dataset.host_labels[: dataset.n_pool]
    made = (dataset.name, labels, members, forget, canonical(chosen), recipe.get("draw"))
    mask = designs.forgettable(*made) & (designs.members(*made[:3]) == designs.RETAIN)
    return Poisoned(dataset, np.flatnonzero(mask), spec["seeds"]["poison"], forget.noise, forget.flip_labels)


def remembered(model: nn.Module, data: Poisoned, index: np.ndarray) -> dict[str, float | None]:
    """What a model remembers of the poison of the samples `index`, as columns of `runs`: GUS and what belongs
    to it where there was noise, the accuracy on the wrong labels where there were such.

    GUS is made of the direction of the loss gradient at the clean input (attacks/gaussian_poisoning.py). As
    the loss is softplus(−φ), it is that of −φ, which is exact where the gradient of the loss itself is lost
    to rounding, as p_y → 1. Evaluation mode: samples do not interact, so one backward pass of the sum gives
    all gradients. Raises Diverged where one is not finite.
    """
    model.eval()
    gradients, right = [], []
    for start in range(0, len(index), BATCH):
        ids = torch.from_numpy(index[start : start + BATCH]).to(data.device)
        images, labels = data.normalised(data.clean.gather(ids)[0]).requires_grad_(), data.labels[ids]
        with torch.enable_grad():
            logits = model(images)
            (gradient,) = torch.autograd.grad(-logit_margin(logits, labels).sum(), images)
        gradients.append(gradient.cpu().numpy())
        right.append((logits.argmax(1) == labels).cpu().numpy())
    found: dict[str, float | None] = {}
    if data.flip_labels:
        found["fa_flipped"] = float(np.concatenate(right).mean())
    if data.noise_std > 0:
        found |= _gus(np.concatenate(gradients), data.noise[data.place[index]], data.noise_std)
    return found


def _gus(gradients: np.ndarray, noise: np.ndarray, noise_std: float) -> dict[str, float | None]:
    from attacks.gaussian_poisoning import gaussian_poisoning  # scipy, which only poisoned cells need

    flat = gradients.reshape(len(gradients), -1)
    broken = int((~np.isfinite(flat).all(axis=1)).sum())
    if broken:
        raise Diverged(f"the input gradient of {broken} of {len(flat)} poisoned samples is not finite")
    if not flat.any():  # a model that looks at no pixel remembers none, but there is nothing to measure
        return {"gus_samples": 0, "gus_without_gradient": len(flat)}
    score = gaussian_poisoning(flat, noise.reshape(len(noise), -1), noise_std)
    return {
        "gus": score.gus,
        "gus_p": score.p_value,
        "gus_tpr_at_1pct": score.tpr,
        "gus_samples": score.samples,
        "gus_without_gradient": score.without_gradient,
    }
