"""How much `bench_train` measures on each kind of device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    train: samples and batch size of the part train, by architecture; small: the same for the digits. warm:
    samples that both loops see before they are timed. repeats: of the part train; packages: of the others
    (digits, cifar). pool, test, epochs: of the part cifar, with `architecture`. digits_pool: pool of the
    digits and a quarter as many test samples, random ones; None for the real ones. cifar_beside: whether the
    part reference is about the part cifar too.
    """

    train: dict[str, tuple[int, int]]
    small: dict[str, tuple[int, int]]
    warm: int
    matrices: tuple[int, ...]
    pool: int
    test: int
    epochs: int
    repeats: int = 3
    packages: tuple[int, int] = (3, 3)
    architecture: str = "resnet18"
    digits_pool: int | None = None
    cifar_beside: bool = True


ALL = ("resnet18", "resnet18_cifar", "tinyvit11m", "cnn_small")
SIZES = {
    "cuda": Sizes(
        train=dict.fromkeys(ALL, (50_000, 256)),
        small={"cnn_small": (1437, 256)},
        warm=256 + 50_000 % 256,  # a last batch of its size too
        matrices=(4096, 8192, 16384),
        pool=50_000,
        test=10_000,
        epochs=5,
        packages=(3, 1),
    ),
    # Two of the nets take 15 and 23 s for one batch of 256 images on a core.
    "cpu": Sizes(
        train={"resnet18": (512, 256), "resnet18_cifar": (64, 64), "tinyvit11m": (32, 32)}
        | {"cnn_small": (2048, 256)},
        small={"cnn_small": (1437, 256)},
        warm=16,
        matrices=(512, 1024, 2048),
        pool=64,
        test=16,
        cifar_beside=False,
        epochs=2,
    ),
}
QUICK = Sizes(
    train=dict.fromkeys(ALL, (8, 4)),
    small={"cnn_small": (40, 8)},
    warm=4,
    matrices=(128, 256),
    pool=60,
    test=20,
    epochs=1,
    repeats=1,
    packages=(1, 1),
    architecture="cnn_small",
    digits_pool=80,
)
