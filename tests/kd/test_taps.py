import copy
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from kd.batch import Needs
from kd.errors import InputError
from kd.taps import ports, read

ALL = Needs(embedding=True, stages=(-1,))


class Plain(nn.Module):
    """A module without any protocol: three resolutions, functional pooling, a linear classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.middle = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.end = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.end(self.middle(self.stem(x)).relu()).mean((2, 3)))


def check(model, x, classes):
    model.eval()
    told, outputs = ports(model, x.shape[1], tuple(x.shape[2:])), read(model, x, ALL)
    torch.testing.assert_close(outputs.logits, model(x), rtol=1e-4, atol=1e-5)
    assert outputs.logits.shape == (len(x), classes)
    assert outputs.embedding.shape == (len(x), told.embedding)
    assert [tuple(stage.shape[1:]) for stage in outputs.stages] == list(told.stages)
    return told, outputs


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035", "convnext_atto", "vit_tiny_patch16_224"])
def test_timm_models_are_read_through_their_own_protocol(name):
    size = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=7, **size)
    told, outputs = check(model, torch.rand(2, 3, 64, 64), 7)
    head = model.get_classifier()
    torch.testing.assert_close(head(outputs.embedding), outputs.logits)
    assert len(told.stages) >= 4
    outputs.stages[0].sum().backward()  # gradients reach what lies before the tap
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", ["dla46_c", "deit_tiny_distilled_patch16_224"])
def test_timm_models_whose_classifier_is_a_convolution_or_two_layers(name):
    size = {"img_size": 64} if "patch" in name else {}
    model, x = timm.create_model(name, num_classes=7, **size), torch.rand(2, 3, 64, 64)
    told, outputs = check(model, x, 7)
    assert len(told.stages) >= 5
    assert told.classifier is None
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(outputs.embedding, expected)
    only = read(model, x, Needs(embedding=True))
    torch.testing.assert_close(only.embedding, expected)
    torch.testing.assert_close(only.logits, model(x))


def test_a_plain_module_is_read_through_hooks():
    model = Plain()
    told, outputs = check(model, torch.rand(2, 3, 16, 16), 5)
    assert told.stages == ((4, 16, 16), (6, 8, 8), (8, 4, 4))
    torch.testing.assert_close(outputs.embedding, outputs.stages[-1].mean((2, 3)))
    assert not any(m._forward_hooks for m in model.modules()), "hooks must not outlive the pass"


TV_VIT = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
TV_SWIN = {"patch_size": [4, 4], "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": [4, 4]}
TV_CONVNEXT = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]


@pytest.mark.parametrize(
    ("make", "stages"),
    [
        # the next stage begins with a layer at the resolution of the last, and shares one activation among all
        (
            partial(models.ResNet, models.resnet.Bottleneck, [1, 1, 1, 1]),
            ((64, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2)),
        ),
        (partial(models.ConvNeXt, TV_CONVNEXT), ((16, 16, 16), (32, 8, 8))),  # blocks with channels last
        (partial(models.SwinTransformer, **TV_SWIN), ((16, 16, 16), (32, 8, 8))),  # channels last
    ],
)
def test_hooks_find_the_maps_at_which_stages_end(make, stages):
    model, x = make(num_classes=7), torch.rand(2, 3, 64, 64)
    told, _ = check(model, x, 7)
    assert told.stages == stages


def test_hooks_make_a_map_of_tokens_but_those_of_classes():
    model, x, tokens = models.VisionTransformer(**TV_VIT, num_classes=7), torch.rand(2, 3, 64, 64), []
    model.encoder.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    told, outputs = check(model, x, 7)
    assert told.stages == ((32, 4, 4),)
    torch.testing.assert_close(outputs.stages[0][:, :, 1, 2], tokens[-1][:, 1 + 4 + 2])


def test_a_map_is_that_of_the_call_at_which_its_stage_ends():
    class Shared(Plain):
        def __init__(self):
            super().__init__()
            self.stem[1] = self.end[2] = self.activation = nn.ReLU()

        def forward(self, x):
            return self.head(self.end(self.activation(self.middle(self.stem[0](x)))).mean((2, 3)))

    model, x = Shared(), torch.rand(2, 3, 16, 16)
    told, outputs = check(model, x, 5)
    assert told.stages == ((4, 16, 16), (6, 8, 8), (8, 4, 4))
    torch.testing.assert_close(outputs.stages[1], model.middle(outputs.stages[0]).relu())


def test_only_what_is_needed_is_read():
    outputs = read(Plain(), torch.rand(2, 3, 16, 16), Needs())
    assert outputs.embedding is None
    assert outputs.stages == ()


def test_a_copy_reads_its_own_modules():
    model = Plain().eval()
    ports(model, 3, (16, 16))
    twin, x = copy.deepcopy(model), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        twin.stem[0].weight.zero_()
    assert not torch.equal(read(twin, x, ALL).stages[0], read(model, x, ALL).stages[0])


def test_asking_for_ports_changes_no_statistics_and_no_mode():
    model = Plain()
    before = copy.deepcopy(model.state_dict())
    ports(model, 3, (16, 16))
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_model_without_a_linear_classifier_is_refused():
    with pytest.raises(InputError, match="no linear layer"):
        ports(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten()), 3, (8, 8))


@pytest.mark.parametrize("size", [32, 64])  # at 32 the last map has one pixel
def test_where_maps_of_the_logits_are_averaged_the_map_before_is(size):
    model, x = models.squeezenet1_1(num_classes=7), torch.rand(2, 3, size, size)
    told, outputs = check(model, x, 7)
    torch.testing.assert_close(outputs.embedding, model.features(x).mean((2, 3)))
    assert told.stages[-1] == ((256, 3, 3) if size == 32 else (512, 3, 3))
    assert told.classifier is None


@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", "fc"), ("vgg11", "classifier.6"), ("squeezenet1_1", "classifier.1")]
)
def test_factors_in_the_place_of_the_classifier_leave_the_embedding_as_it_was(name, head):
    torch.manual_seed(0)
    model, x = models.get_model(name, num_classes=7).eval(), torch.rand(2, 3, 64, 64)
    told, before = check(model, x, 7)
    old = model.get_submodule(head)
    if isinstance(old, nn.Linear):
        row = [nn.Linear(old.in_features, 2, bias=False), nn.Linear(2, 7)]
    else:
        row = [nn.Conv2d(old.in_channels, 2, 1, bias=False), nn.Conv2d(2, 7, 1)]
    model.set_submodule(head, nn.Sequential(*row))
    now, after = check(model, x, 7)
    torch.testing.assert_close(after.embedding, before.embedding)
    assert (now.stages, now.last) == (told.stages, told.last)
    assert now.classifier is None


def test_an_image_that_the_model_cannot_take_is_refused():
    with pytest.raises(InputError, match=r"data\.image_size: 1x8x8"):
        ports(Plain(), 1, (8, 8))
    with pytest.raises(InputError, match=r"data\.image_size: 3x32x32: VisionTransformer cannot take it"):
        ports(timm.create_model("vit_tiny_patch16_224", img_size=64), 3, (32, 32))


BEFORE = Needs(stages=(-1,), before=True)


@pytest.mark.parametrize("name", ["resnet10t", "resnet18", "regnetx_002", "mobilenetv2_035"])
def test_maps_come_before_their_activation_too(name):
    """Also where activations write over their input, and in training."""
    options = {"zero_init_last": False} if name.startswith("re") else {}
    model, x = timm.create_model(name, num_classes=7, **options), torch.rand(2, 3, 64, 64)
    told = ports(model, 3, (64, 64))
    outputs = read(model, x, BEFORE)
    assert [tuple(stage.shape[1:]) for stage in outputs.before] == list(told.stages)
    seen = 0
    for before, stage in zip(outputs.before, outputs.stages, strict=True):
        if not torch.equal(before, stage):  # a linear bottleneck ends without an activation
            seen += 1
            assert before.min() < 0
            torch.testing.assert_close(before.relu().clamp(max=6) if "mobile" in name else before.relu(), stage)
    assert seen == len(outputs.stages) or "mobile" in name
    outputs.before[-1].sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules()), "hooks must not outlive the pass"
    with torch.no_grad():
        torch.testing.assert_close(outputs.logits, read(model, x, ALL).logits)  # still the same net


class Rectified(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_an_activation_is_found_where_it_changes_nothing():
    model = timm.create_model("resnet18", num_classes=7)  # zeroed norms: blocks pass on what is above 0 already
    with torch.no_grad():
        before = read(model, torch.rand(2, 3, 64, 64), BEFORE).before
        model.layer4[-1].bn2.bias.fill_(-1.0)
        assert read(model, torch.rand(2, 3, 64, 64), BEFORE).before[-1].min() < 0 <= before[-1].min()


def test_a_map_that_a_function_rectifies_cannot_be_had_before():
    model, x = Plain().eval(), torch.rand(2, 3, 16, 16)
    assert torch.equal(read(model, x, BEFORE).before[1], read(model, x, ALL).stages[1])  # a convolution's own output
    model.middle = Rectified(4, 6, 3, stride=2, padding=1)
    with pytest.raises(InputError, match="by a function"):
        read(copy.deepcopy(model), x, BEFORE)


def test_ports_hold_the_norm_of_each_stage_and_the_classifier():
    model = timm.create_model("resnet18", num_classes=7)
    for number, parameter in enumerate(model.parameters()):
        parameter.data.fill_(number)  # to be told apart
    told = ports(model, 3, (64, 64))
    norms = [model.bn1, model.layer1[-1].bn2, model.layer2[-1].bn2, model.layer3[-1].bn2, model.layer4[-1].bn2]
    for (weight, bias), norm in zip(told.norms, norms, strict=True):
        assert torch.equal(weight, norm.weight)
        assert torch.equal(bias, norm.bias)
    weight, bias = told.classifier
    assert torch.equal(weight, model.fc.weight)
    assert torch.equal(bias, model.fc.bias)
    model.fc.weight.data.zero_()
    assert weight.any(), "a copy"
    shallow = timm.create_model("resnet10t", num_classes=7)  # blocks with a shortcut of their own norm
    last = ports(shallow, 3, (64, 64)).norms[-1][0]
    assert last.data_ptr() != shallow.layer4[-1].bn2.weight.data_ptr()
    shallow.layer4[-1].bn2.weight.data.fill_(3.0)
    assert (ports(shallow, 3, (64, 64)).norms[-1][0] == 3).all()


def test_ports_of_nets_without_batch_norm():
    told = ports(timm.create_model("convnext_atto", num_classes=7), 3, (64, 64))
    assert told.norms == (None,) * len(told.stages)
    assert ports(Plain(), 3, (16, 16)).norms[:2] == (None, None)


SWIN = {"img_size": 64, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("resnet10t", {}, (512, 2, 2)),
        ("efficientnet_b0", {}, (1280, 2, 2)),  # widened after the last stage
        ("swin_tiny_patch4_window7_224", SWIN, (32, 8, 8)),  # channels last
        ("vit_tiny_patch16_224", {"img_size": 64}, None),  # a class token
        ("vit_tiny_patch16_224", {"img_size": 64, "global_pool": "avg", "fc_norm": False}, (192, 4, 4)),  # tokens
        ("convnext_atto", {}, None),  # a norm after the pooling
    ],
)
def test_the_map_whose_average_is_classified(name, options, shape):
    model, x = timm.create_model(name, num_classes=7, **options).eval(), torch.rand(2, 3, 64, 64)
    told, outputs = ports(model, 3, (64, 64)), read(model, x, Needs(classifier=True, final=True))
    assert told.final == shape
    if shape is not None:
        assert outputs.extra["final"].shape[1:] == shape
        logits = outputs.extra["final"].mean((2, 3)) @ outputs.extra["classifier"].T + told.classifier[1]
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-5)
    assert "final" not in read(model, x, ALL).extra


def test_the_final_map_of_a_net_that_is_read_by_hooks():
    model, x = Plain().eval(), torch.rand(2, 3, 16, 16)
    assert ports(model, 3, (16, 16)).final == (8, 4, 4)
    torch.testing.assert_close(read(model, x, Needs(final=True)).extra["final"], read(model, x, ALL).stages[-1])
