from __future__ import annotations

import pytest
import torch
from torch import nn

from kd.batch import Ports
from kd.errors import InputError
from kd.losses import FitNet
from kd.testing import LossContract, tiny_facts


def naive_convolution(layer, image, size):
    """One image, [channel][row][column], through a plain or transposed convolution to (C, H, W) `size`."""
    weight, transposed = layer.weight.tolist(), isinstance(layer, nn.ConvTranspose2d)
    height, width = len(image[0]), len(image[0][0])
    result = [[[0.0] * size[2] for _ in range(size[1])] for _ in range(size[0])]
    small = (height, width) if transposed else size[1:]
    large = size[1:] if transposed else (height, width)
    for row in range(small[0]):
        for column in range(small[1]):
            for i in range(layer.kernel_size[0]):
                for j in range(layer.kernel_size[1]):
                    y = row * layer.stride[0] - layer.padding[0] + i
                    x = column * layer.stride[1] - layer.padding[1] + j
                    if not (0 <= y < large[0] and 0 <= x < large[1]):
                        continue
                    for a in range(len(image)):
                        for b in range(size[0]):
                            if transposed:
                                result[b][y][x] += weight[a][b][i][j] * image[a][row][column]
                            else:
                                result[b][row][column] += weight[b][a][i][j] * image[a][y][x]
    return result


class TestFitNet(LossContract):
    def make(self):
        return FitNet()

    def reference(self, loss, student, teacher, batch):
        convolution, norm, _ = loss.regressor
        hint = teacher.stages[loss.stage]
        maps = [naive_convolution(convolution, image, hint.shape[1:]) for image in student.stages[loss.stage].tolist()]
        total = 0.0
        for channel, (scale, shift) in enumerate(zip(norm.weight.tolist(), norm.bias.tolist(), strict=True)):
            ours = [value for image in maps for row in image[channel] for value in row]
            theirs = hint[:, channel].flatten().tolist()
            mean = sum(ours) / len(ours)
            variance = sum((value - mean) ** 2 for value in ours) / len(ours)
            for value, target in zip(ours, theirs, strict=True):
                normal = (value - mean) / (variance + norm.eps) ** 0.5
                total += (max(scale * normal + shift, 0.0) - target) ** 2
        return total / hint.numel()


class TestFitNetOfUnequalResolutions(TestFitNet):
    """4x4 to 2x2 by stride, and back the other way round."""

    def make(self):
        return FitNet(stage=-1)


class TestFitNetOfRatiosThatAreNotWhole(TestFitNet):
    student = Ports(4, 3, ((2, 5, 4), (1, 1, 1)))
    teacher = Ports(4, 5, ((3, 3, 3), (1, 1, 1)))


def bound(source, target):
    loss = FitNet(0)
    loss.bind(Ports(3, 2, (source,)), Ports(3, 2, (target,)), tiny_facts())
    return loss.regressor


@pytest.mark.parametrize("small", [1, 2, 3, 7])
@pytest.mark.parametrize("large", [1, 2, 6, 7, 8, 21, 28])
def test_the_regressor_reaches_every_size(small, large):
    small, large = sorted((small, large))
    for source, target in (((2, large, small), (3, small, small)), ((2, small, small), (3, large, small))):
        regressor = bound(source, target)
        assert regressor(torch.randn(2, *source)).shape[1:] == target
        assert [type(layer) for layer in regressor[1:]] == [nn.BatchNorm2d, nn.ReLU]


def test_maps_that_shrink_one_way_and_grow_the_other_are_refused():
    with pytest.raises(InputError, match="shrinks"):
        bound((2, 8, 4), (3, 4, 8))
