"""Small contracts of datasets and architectures, each over what is found by folder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from methods.base import plugin
from orchestrator.catalogue import ROOT, plugins
from workers.architectures import architecture
from workers.data import Arrays
from workers.engine import placed
from workers.run_task import Base, pack_base, unpack_base, weights_hash

DATASETS = {name: plugin("workers.datasets", name) for name in plugins("datasets")}
ARCHITECTURES = sorted({*plugins("architectures"), "timm:test_resnet"} - {"timm"})


# ---- datasets ------------------------------------------------------------------------------------


def arrays(name: str, folder: Path) -> Arrays:
    """The arrays of a dataset, or a skip where its files are not at hand."""
    try:
        return DATASETS[name]().load(folder)
    except FileNotFoundError as error:
        assert f"lethe prepare {name}" in str(error), "the error must say what to do"
        pytest.skip(f"{name} has to be downloaded")


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_constants_agree_with_the_catalogue(name: str) -> None:
    cls, constants = DATASETS[name], plugins("datasets")[name].constants
    for key in (
        "name",
        "label",
        "paper",
        "version",
        "num_classes",
        "pool_size",
        "mean",
        "std",
        "augment_pad",
        "augment_flip",
    ):
        assert constants[key] == getattr(cls, key), key
    assert len(cls.mean) == len(cls.std) and all(0 < value < 1 for value in cls.mean + cls.std)
    assert cls.training["epochs"] >= 1


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_arrays(name: str, tmp_path: Path) -> None:
    cls, data = DATASETS[name], arrays(name, tmp_path)
    assert len(data.pool_labels) == cls.pool_size, "plans count training images with it"
    for images, labels in ((data.pool_images, data.pool_labels), (data.test_images, data.test_labels)):
        assert images.dtype == np.uint8 and labels.dtype == np.int64
        assert images.ndim == 4 and images.shape[2] == images.shape[3] and len(images) == len(labels)
        assert images.shape[1] == len(cls.mean)
        assert np.array_equal(np.unique(labels), np.arange(cls.num_classes)), "every class, in pool and test"
    for channel, (mean, std) in enumerate(zip(cls.mean, cls.std, strict=True)):
        pixels = data.pool_images[:, channel] / 255
        assert abs(pixels.mean() - mean) < 0.02 and abs(pixels.std() - std) < 0.05


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_is_the_same_at_each_loading(name: str, tmp_path: Path) -> None:
    one, other = arrays(name, tmp_path), arrays(name, tmp_path)
    for f in fields(Arrays):
        assert np.array_equal(getattr(one, f.name), getattr(other, f.name)), f.name


def test_digits_are_a_stratified_partition_of_the_copy_in_scikit_learn(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    data, source = arrays("digits", tmp_path), load_digits()
    assert (len(data.pool_labels), len(data.test_labels)) == (1437, 360)
    together = sorted(image.tobytes() for image in np.concatenate([data.pool_images, data.test_images]))
    assert together == sorted((image * 15).astype(np.uint8)[None].tobytes() for image in source.images)
    share = np.bincount(data.test_labels) / np.bincount(source.target)
    assert np.all(np.abs(share - 360 / 1797) < 1 / 170)


# ---- architectures -------------------------------------------------------------------------------

COUNTS = {
    "resnet18": ((10, 3, 32), 11_181_642),
    "resnet18_cifar": ((10, 3, 32), 11_173_962),
    "wide_resnet16_4": ((10, 3, 32), 2_748_890),
    "cnn_small": ((10, 1, 8), 9_978),
    "vit_tiny": ((10, 1, 8), 39_514),
    "tinyvit11m": ((10, 3, 32), 10_552_462),
    "timm:test_resnet": ((10, 3, 32), 373_658),
    "timm:resnet18": ((10, 3, 32), 11_181_642),
}


def built(name: str, num_classes: int, channels: int, size: int, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return architecture(name).build(num_classes, channels, size)


def test_a_parameter_count_is_known_of_every_architecture() -> None:
    assert set(ARCHITECTURES) <= set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_is_known_and_stated(name: str) -> None:
    shape, count = COUNTS[name]
    assert sum(p.numel() for p in built(name, *shape).parameters()) == count
    if ":" not in name:
        text = (ROOT / "workers" / "architectures" / f"{name}.py").read_text(encoding="utf-8")
        assert f"{count:,} parameters" in text
        assert (
            f"| `{name}` |" in (readme := (ROOT / "README.md").read_text("utf-8")) and f"{count:,}" in readme
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (1, 32), (3, 32)])
def test_architecture_runs_on_small_and_large_images(name: str, channels: int, size: int) -> None:
    model = built(name, 7, channels, size)
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        logits = model.train(training)(images)
        assert logits.shape == (2, 7) and bool(torch.isfinite(logits).all())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(images)[:1], model(images)[:1])


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_weight_in_both_modes(name: str, training: bool) -> None:
    """At every step, from weights none of which is zero."""
    model = built(name, 7, 3, 32)
    rng = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 3, 32, 32, generator=rng), torch.arange(6)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=rng))
    model.train(training)
    for _ in range(2):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not without


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_draws_its_weights_from_the_global_seed(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in built(name, 4, 1, 8, seed).parameters()])

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_weights_survive_being_saved(name: str, channels: int) -> None:
    """Another model given the saved weights gives the same logits, bit for bit."""
    model, other = built(name, 7, channels, 32), built(name, 7, channels, 32, seed=1)
    device = torch.device("cpu")
    images = torch.randn(3, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        placed(model, device)(images)  # statistics of BatchNorm move
        base = Base(model, "members", weights_hash(model, None), 1.5)
        again = unpack_base(pack_base(base), other, device)
        assert again.weights_sha256 == base.weights_sha256
        assert torch.equal(again.model(images), model.eval()(images))
