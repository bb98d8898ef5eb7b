"""The toy problem on random samples with a convolutional net, for tests that are not in a MethodContract."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.contract.toy import Toy, problem

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cnn() -> Toy:
    return problem("cnn", "random", "plain")
