"""Changes to timm's models: strides that would corrupt the heap."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from fastmim.backbone import Backbone
from fastmim.backbone.classifier import Classifier
from fastmim.backbone.surgery import replace_strides
from fastmim.studies.survey_process import heap_checks

TRAIN = """
import torch
from fastmim.backbone import Backbone
torch.set_num_threads(1)
backbone = Backbone("repvgg_a0", img_size=128)
for _ in range(2):
    backbone(torch.rand(2, 3, 128, 128)).sum().backward()
"""


@pytest.mark.skipif(not heap_checks(), reason="glibc's malloc checks are missing")
def test_training_with_strided_1x1_convolutions_leaves_the_heap_whole():
    subprocess.run([sys.executable, "-c", TRAIN], env=os.environ | heap_checks(), check=True)


@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": (1, 3), "bias": False}, {"stride": 2, "groups": 3}])
def test_replaced_strides_give_the_same_numbers(options):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 17, 16, requires_grad=True)
    convolution = nn.Conv2d(3, 6, 1, **options)
    results = []
    for _ in range(2):
        values = convolution(images)
        results.append((values, *torch.autograd.grad(values.square().sum(), (images, convolution.weight))))
        replace_strides(convolution)
        assert convolution.stride == (1, 1)
    torch.testing.assert_close(*results)


def test_only_strided_1x1_convolutions_of_few_channels_are_replaced():
    kept = nn.Sequential(nn.Conv2d(16, 4, 1, 2), nn.Conv2d(3, 4, 3, 2), nn.Conv2d(3, 4, 1, 2, padding=1))
    replace_strides(kept)
    assert [module.stride for module in kept] == [(2, 2)] * 3


@pytest.mark.parametrize("make", [Backbone, lambda name, **size: Classifier(name, num_classes=2, **size)])
def test_strides_are_replaced_in_backbones_and_classifiers(make):
    model = make("repvgg_a0", img_size=64)
    strided = [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1)
    ]
    assert min(module.in_channels for module in strided) >= 16
