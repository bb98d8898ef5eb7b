"""CIFAR-20: the images of CIFAR-100, their 20 superclasses as classes, the 100 fine labels as subclasses.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The data of sub-class unlearning:
Chundawat, Tarun, Mandal, Kankanhalli 2023, arXiv 2205.08096. The files and the recipe are those of cifar100.
"""

from __future__ import annotations

from pathlib import Path

from workers.data import Arrays
from workers.files import load_batches, prepare_batches


class Cifar20:
    """Pool: the official training set. Test: the official test set."""

    name = "cifar20"
    label = "CIFAR-20"
    paper = "Krizhevsky 2009"
    version = 1
    num_classes = 20
    num_subclasses = 100
    subclass_names = (
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly "
        "camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile "
        "cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp "
        "lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom "
        "oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine "
        "possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake "
        "spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor "
        "train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
    )  # in the order of their numbers
    pool_size = 50000
    test_size = 10000
    size = 32
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    augment_pad = 4
    augment_flip = True
    training = {"epochs": 182, "batch_size": 256}

    def load(self, folder: Path) -> Arrays:
        """The arrays; FileNotFoundError in one line when `folder` lacks the files or they are damaged."""
        from torchvision.datasets import CIFAR100

        return Arrays(*load_batches(self, folder, CIFAR100, "coarse_labels", "fine_labels"))

    def prepare(self, folder: Path) -> str:
        """Download and verify what cannot be read yet; returns where the files are."""
        from torchvision.datasets import CIFAR100

        return prepare_batches(self, folder, CIFAR100)
