from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import students
from kd.batch import Place
from kd.errors import InputError
from students import Blueprint, Reclassify, Replace, Resize


def model() -> students.Classifier:
    torch.manual_seed(0)
    made = students.create("cifar_resnet8", num_classes=5, image_size=8)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):  # no two channels alike
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return made


NORM = ("weight", "bias", "running_mean", "running_var")
NARROW = [
    Resize("layer1.0.conv1", {"out_channels": 10}, {"weight": [10, 16, 3, 3]}),
    Resize("layer1.0.bn1", {"num_features": 10}, {key: [10] for key in NORM}),
    Resize("layer1.0.conv2", {"in_channels": 10}, {"weight": [16, 10, 3, 3]}),
]


def test_resizing_changes_shapes_and_takes_the_weights() -> None:
    made, before = model(), model().net.layer1[0]
    keep, gone = torch.tensor([0, 1, 3, 4, 6, 7, 9, 11, 14, 15]), torch.tensor([2, 5, 8, 10, 12, 13])
    weights = {f"layer1.0.bn1.{key}": value[keep] for key, value in before.bn1.state_dict().items() if value.dim()}
    weights |= {
        "layer1.0.conv1.weight": before.conv1.weight[keep],
        "layer1.0.conv2.weight": before.conv2.weight[:, keep],
    }
    students.edit(made, NARROW, weights)
    expected = model()
    block = expected.net.layer1[0]
    with torch.no_grad():  # silent channels are no channels
        block.bn1.weight[gone] = 0
        block.bn1.bias[gone] = 0
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(made.eval()(x), expected.eval()(x))
    assert made.net.layer1[0].conv1.out_channels == 10
    assert isinstance(made.net.layer1[0].conv1.weight, nn.Parameter)
    assert made.blueprint.edits == tuple(NARROW)


def test_a_blueprint_repeats_the_edits() -> None:
    made = model()
    low = [
        {"type": "Linear", "in_features": 64, "out_features": 2},
        {"type": "Linear", "in_features": 2, "out_features": 5},
    ]
    students.edit(made, NARROW)
    students.edit(made, [Replace("linear", low)])
    students.edit(made, [Resize("linear.0", {"in_features": 64}, {"bias": [2]})])
    again = Blueprint.from_json(made.blueprint.to_json()).build()
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in made.state_dict().items()}
    assert again(torch.rand(2, 3, 8, 8)).isfinite().all()  # nothing is left as it came from memory
    assert len(made.blueprint.edits) == 5


def factors(rank: int) -> list[dict[str, Any]]:
    return [
        {"type": "Conv2d", "in_channels": 16, "out_channels": rank, "kernel_size": 3, "padding": 1, "bias": False},
        {"type": "Conv2d", "in_channels": rank, "out_channels": 16, "kernel_size": 1, "bias": False},
    ]


def test_a_module_is_replaced_by_a_row_that_can_be_resized_in_turn() -> None:
    made, before = model().eval(), model().net.layer1[0].conv1.weight.detach()
    students.edit(
        made,
        [Replace("layer1.0.conv1", factors(16))],
        {"layer1.0.conv1.0.weight": before, "layer1.0.conv1.1.weight": torch.eye(16).view(16, 16, 1, 1)},
    )
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(made(x), model().eval()(x))
    keep = torch.tensor([1, 2, 4, 7, 8, 11])
    first, second = made.net.layer1[0].conv1
    nested = [
        Resize("layer1.0.conv1.0", {"out_channels": 6}, {"weight": [6, 16, 3, 3]}),
        Resize("layer1.0.conv1.1", {"in_channels": 6}, {"weight": [16, 6, 1, 1]}),
    ]
    weights = {"layer1.0.conv1.0.weight": first.weight[keep], "layer1.0.conv1.1.weight": second.weight[:, keep]}
    students.edit(made, nested, weights)
    expected = model().eval()
    with torch.no_grad():
        expected.net.layer1[0].conv1.weight[[c for c in range(16) if c not in keep]] = 0
    torch.testing.assert_close(made(x), expected(x))
    again = Blueprint.from_json(made.blueprint.to_json()).build().eval()
    students.load_weights(again, made.net.state_dict(), "memory")
    assert torch.equal(again(x), made(x))


def test_replacing_keeps_device_type_and_mode() -> None:
    made = model().double().eval()
    layers = [
        {"type": "Conv2d", "in_channels": 3, "out_channels": 16, "kernel_size": [3, 3], "padding": 1},
        {"type": "Identity"},
    ]
    students.edit(made, [Replace("conv1", layers)])
    new = made.net.conv1
    assert [type(layer) for layer in new] == [nn.Conv2d, nn.Identity]
    assert new[0].weight.dtype == torch.float64
    assert not new.training
    assert made(torch.rand(1, 3, 8, 8, dtype=torch.float64)).shape == (1, 5)


def test_a_net_gets_another_classifier_of_its_last_map_and_is_edited_on_below_it() -> None:
    made, x = model().eval(), torch.rand(2, 3, 8, 8)
    (stage,) = made.forward_intermediates(x, indices=1, intermediates_only=True)
    for place in (None, Place("layer3", 0, (2, 2), False)):
        same = model().double().eval()
        students.edit(same, [Reclassify(place, [1, 2], [64, 4, 8], 5)], {"classifier.bias": torch.zeros(5).double()})
        net = same.net
        expected = net.projector(nn.functional.adaptive_avg_pool2d(stage.double(), (1, 2))).mean((2, 3))
        torch.testing.assert_close(same(x.double()), expected @ net.classifier.weight.T, rtol=1e-4, atol=1e-5)
        assert not any(module.training for module in net.modules())
    students.edit(same, [Resize("classifier", {"in_features": 8}, {"bias": [5]}), Replace("net.linear", [])])
    again = Blueprint.from_json(same.blueprint.to_json()).build().double().eval()
    students.load_weights(again, same.net.state_dict(), "memory")
    assert torch.equal(again(x.double()), same(x.double()))


def test_a_net_that_does_not_tell_its_stages_needs_a_path() -> None:
    made = students.create("tv_resnet18", num_classes=5)
    with pytest.raises(InputError, match="ResNet does not tell its last stage"):
        students.edit(made, [Reclassify(None, [2, 2], [512, 4, 8], 5)])


def test_an_empty_row_hands_on_what_it_is_given() -> None:
    made, x = model().eval(), torch.rand(2, 3, 8, 8)
    students.edit(made, [Replace("linear", [])])
    torch.testing.assert_close(made(x), model().eval().forward_features(x).mean((2, 3)))


def test_shapes_and_tuples_become_lists_so_that_json_gives_them_back() -> None:
    edit = Resize("conv1", {"padding": (1, 1)}, {"weight": torch.Size([4, 3, 3, 3])})
    assert edit == Resize("conv1", {"padding": [1, 1]}, {"weight": [4, 3, 3, 3]})
    made = model()
    students.edit(made, [edit])
    assert made.net.conv1.padding == (1, 1)


def test_a_resized_tensor_has_the_scale_of_the_old_one() -> None:
    made = students.create("cifar_resnet8", num_classes=5)
    before = made.net.layer3[0].conv2.weight.std()
    students.edit(made, [Resize("layer3.0.conv2", {}, {"weight": [32, 64, 3, 3]}), Resize("bn1", {}, {"weight": [9]})])
    torch.testing.assert_close(made.net.layer3[0].conv2.weight.std(), before, rtol=0.05, atol=0)
    assert torch.equal(made.net.bn1.weight, torch.ones(9))


def test_the_given_weights_are_copied() -> None:
    made, weight = model(), torch.ones(16)
    students.edit(made, [], {"bn1.weight": weight})
    weight.zero_()
    assert torch.equal(made.net.bn1.weight, torch.ones(16))
    sketch = made.blueprint.build("meta")
    students.edit(sketch, [], {"bn1.weight": weight})
    assert sketch.net.bn1.weight.is_meta  # a model stays on its device


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Resize("layer9"), "no such module"),
        (Resize("conv1", {"colour": 3}), "no attribute colour"),
        (Resize("conv1", {"_parameters": 3}), "no attribute _parameters"),
        (Resize("conv1", {}, {"bias": [3]}), "no parameter or buffer bias"),
        (Replace("conv9", []), "no such module"),
        (Replace("conv1", [{"type": "os.system", "command": "ls"}]), "cannot be made"),
        (Replace("conv1", [{"type": "Conv2d", "colour": 3}]), "cannot be made"),
        (Replace("conv1", [{"type": "Linear", "in_features": -1, "out_features": 3}]), "cannot be made"),
        (Replace("", [{"type": "Identity"}]), "cannot be made"),
        (Reclassify(Place("layer9", 0, (2, 2), False), [2, 2], [64, 4, 8], 5), "no such module"),
        (Reclassify(Place(3, 0, (2, 2), False), [2, 2], [64, 4, 8], 5), "no such module"),  # type: ignore[arg-type]
    ],
)
def test_refuses_edits_that_do_not_fit_and_leaves_the_model_as_it_was(edit: Any, message: str) -> None:
    made = model()
    with pytest.raises(InputError, match=message):
        students.edit(made, [*NARROW, edit])
    assert_untouched(made)


@pytest.mark.parametrize(("key", "shape"), [("conv1.weight", (16, 3, 5, 5)), ("conv9.weight", (1,))])
def test_refuses_weights_that_do_not_fit_and_leaves_the_model_as_it_was(key: str, shape: tuple[int, ...]) -> None:
    made = model()
    with pytest.raises(InputError, match=key):
        students.edit(made, NARROW, {"bn1.weight": torch.zeros(16), key: torch.zeros(shape)})
    assert_untouched(made)


def assert_untouched(made: students.Classifier) -> None:
    expected = model()
    assert made.blueprint == expected.blueprint
    assert repr(made) == repr(expected)
    for (name, value), (_, other) in zip(made.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(value, other), name


def test_a_resize_that_fails_halfway_leaves_the_model_as_it_was() -> None:
    made = model()
    with pytest.raises(InputError, match="no parameter or buffer bias"):
        students.edit(made, [Resize("conv1", {"in_channels": 5}, {"weight": [16, 5, 3, 3], "bias": [16]})])
    assert_untouched(made)
