from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import students
from compress import importance
from compress.importance import IMPORTANCES
from kd.errors import InputError

CHANNELS, PLANTED = 6, 4
DRIVEN = ("taylor", "movement", "obd", "activation")
# conv.weight, norm.weight and norm.bias make the channels, head.weight reads them
AXES = [("conv.weight", 0), ("norm.weight", 0), ("norm.bias", 0), ("head.weight", 1)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, CHANNELS, 3, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def classifier(net: nn.Module) -> students.Classifier:
    return students.Classifier(net, students.Blueprint("cifar_resnet8", num_classes=10, in_chans=1, image_size=8))


def small() -> students.Classifier:
    torch.manual_seed(0)
    model = classifier(Net()).eval()
    with torch.no_grad():
        model.net.norm.weight.uniform_(1, 2)
        model.net.norm.weight[1] *= -1
        model.net.norm.bias.uniform_(0.1, 0.2)
    return model


def rows(values: Mapping[str, Tensor], axes: Sequence[tuple[str, int]] = AXES) -> list[Tensor]:
    """What `Group.rows` gathers where entry i belongs to channel i."""
    found = [values[path].movedim(dim, 0) for path, dim in axes if path in values]
    return [value.reshape(len(value), -1) for value in found]


def judged(name: str, model: nn.Module, context: object, axes: Sequence[tuple[str, int]] = AXES) -> Tensor:
    judge = IMPORTANCES[name]
    return judge.channels(rows(judge.entries(model, context), axes))


def quiet(model: students.Classifier, digits: object) -> None:
    """Channel 4 is made and read by a hundredth of the weights of the others."""
    net = model.net
    net.conv.weight[PLANTED] /= 100
    net.norm.weight[PLANTED] /= 100
    net.norm.bias[PLANTED] = 0
    net.head.weight[:, PLANTED] /= 100


def average(model: students.Classifier, digits: object) -> None:
    """Channel 4 has the mean weights of the others: it is as large, but what it does they do."""
    others = [channel for channel in range(CHANNELS) if channel != PLANTED]
    model.net.conv.weight[PLANTED] = model.net.conv.weight[others].mean(0)
    model.net.head.weight[:, PLANTED] = model.net.head.weight[:, others].mean(1)


def harmful(model: students.Classifier, digits: object) -> None:
    """The head has made a first step from zero; what it reads of channel 4 it took the wrong way."""
    (pixels,) = digits.train.read([torch.arange(len(digits.train))])
    net = model.net
    net.head.weight.zero_()
    net.head.bias.zero_()
    with torch.enable_grad():
        loss = cross_entropy(model(pixels.float() / 255), digits.train.labels)
        (gradient,) = torch.autograd.grad(loss, net.head.weight)
    net.head.weight.sub_(gradient)
    net.head.weight[:, PLANTED] *= -1


PLANTS = {"fpgm": average, "movement": harmful}


@pytest.mark.parametrize("name", [name for name in IMPORTANCES if name != "random"])
def test_a_planted_unimportant_channel_is_found(name, context, digits):
    model = small()
    with torch.no_grad():
        PLANTS.get(name, quiet)(model, digits)

    scores = judged(name, model, context())
    assert scores.shape == (CHANNELS,)
    assert scores.min() >= 0
    assert scores.argmin() == PLANTED
    assert scores[PLANTED] < 0.9 * scores.sort().values[1]


def matrices() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(CHANNELS, n, dtype=torch.float64) for n in (27, 40, 1)]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("l1", lambda row, matrix: sum(map(abs, row))),
        ("l2", lambda row, matrix: math.hypot(*row)),
        ("fpgm", lambda row, matrix: sum(math.dist(row, other) for other in matrix)),
        ("taylor", lambda row, matrix: sum(row) ** 2),
        ("obd", lambda row, matrix: sum(row)),
    ],
)
def test_scores_are_sums_over_layers_of_the_formula(name, layer):
    given = matrices()
    expected = [sum(layer(m.tolist()[c], m.tolist()) for m in given) for c in range(CHANNELS)]

    assert IMPORTANCES[name].channels(given).tolist() == pytest.approx(expected, rel=1e-9)


def test_lamp_is_the_share_of_a_square_in_the_sum_of_those_not_less():
    given = matrices()
    sizes = IMPORTANCES["l2"].channels(given).tolist()
    expected = [size**2 / sum(other**2 for other in sizes if other >= size) for size in sizes]

    scores = IMPORTANCES["lamp"].channels(given)
    assert scores.tolist() == pytest.approx(expected, rel=1e-9)
    assert scores.max() == 1


def test_movement_counts_from_the_least_of_the_group():
    given = matrices()
    sums = [sum(sum(m.tolist()[c]) for m in given) for c in range(CHANNELS)]

    expected = [value - min(sums) for value in sums]
    assert IMPORTANCES["movement"].channels(given).tolist() == pytest.approx(expected, rel=1e-9)


def test_layers_are_put_together_by_sum_mean_or_maximum_normalised_or_not():
    given, l1 = matrices(), IMPORTANCES["l1"]
    layers = torch.stack([m.abs().sum(1) for m in given])
    shares = layers / layers.mean(1, keepdim=True)

    for normalised, scores in ((False, layers), (True, shares)):
        for reduction, expected in (("sum", scores.sum(0)), ("mean", scores.mean(0)), ("max", scores.max(0).values)):
            assert torch.allclose(l1.channels(given, reduction, normalised), expected), (reduction, normalised)


def linear(context: object) -> tuple[students.Classifier, list[list[float]], list[int]]:
    """A classifier that is one layer, in float64, its images as rows of pixels, and their labels."""
    torch.manual_seed(0)
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).double()
    images, labels = context.labelled()
    return model, images.double().flatten(1).tolist(), labels.tolist()


def gradient(weight, bias, x, y):
    """Of the cross-entropy about one image: 10 rows of 64 for the weight, with one more for the bias."""
    logits = [sum(w * v for w, v in zip(ws, x, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]
    powers = [math.exp(logit) for logit in logits]
    errors = [power / sum(powers) - (label == y) for label, power in enumerate(powers)]
    return [[error * v for v in (*x, 1.0)] for error in errors]


def whole(values: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([values["1.weight"], values["1.bias"][:, None]], 1)


def test_taylor_and_obd_are_their_formulas(context):
    context = context(calibration=70)  # one batch and a part
    model, images, labels = linear(context)
    weight, bias = (value.tolist() for value in model.net[1].parameters())
    products, squares = ([[0.0] * 65 for _ in range(10)] for _ in range(2))
    for x, y in zip(images, labels, strict=True):
        for label, found in enumerate(gradient(weight, bias, x, y)):
            for place, (w, g) in enumerate(zip((*weight[label], bias[label]), found, strict=True)):
                products[label][place] += w * g / 70
                squares[label][place] += g**2 / 70 * w**2 / 2

    for name, expected in (("taylor", products), ("obd", squares)):
        entries = whole(IMPORTANCES[name].entries(model, context))
        assert torch.allclose(entries, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-12), name


def test_movement_is_what_sgd_does_to_the_size_of_weights(context):
    context = context(calibration=70)
    model, images, labels = linear(context)
    weight = [[*ws, b] for ws, b in zip(*(value.tolist() for value in model.net[1].parameters()), strict=True)]
    expected = [[0.0] * 65 for _ in range(10)]
    for _ in range(importance.EPOCHS):
        for batch in (range(64), range(64, 70)):
            each = [
                gradient([ws[:-1] for ws in weight], [ws[-1] for ws in weight], images[i], labels[i]) for i in batch
            ]
            for label in range(10):
                for place in range(65):
                    mean = sum(found[label][place] for found in each) / len(batch)
                    expected[label][place] -= weight[label][place] * mean
                    weight[label][place] -= importance.RATE * mean

    entries = whole(IMPORTANCES["movement"].entries(model, context))
    assert torch.allclose(entries, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-12)


def test_activations_are_mean_sizes_of_what_norms_and_lone_layers_say(context):
    context = context(calibration=70)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3),  # a norm follows: its word stands
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 3, bias=False),
        nn.Flatten(2),
        nn.Linear(16, 3),
        nn.LayerNorm(3),
        nn.Flatten(),
        nn.Linear(12, 10),
    )
    model = classifier(net).double()
    entries = IMPORTANCES["activation"].entries(model, context)

    said, x = {}, context.images().double()
    model.eval()
    for place, layer in enumerate(net):
        x = layer(x)
        said[place] = x.detach().abs()
    for path, of, dims in (("1.bias", 0, (0, 2, 3)), ("6.bias", 6, (0, 1)), ("8.bias", 8, 0)):
        expected = (
            net[1](net[0](context.images().double())).abs().mean(dims) if path == "1.bias" else said[of].mean(dims)
        )
        assert torch.allclose(entries[path], expected), path
    assert torch.allclose(entries["3.weight"].sum((1, 2, 3)), said[3].mean((0, 2, 3)))
    assert not {"0.bias", "3.bias", "5.bias"} & set(entries)
    # who reads the channels that 1 makes is not asked
    channels = IMPORTANCES["activation"].channels
    axes = [("0.weight", 0), ("1.bias", 0), ("3.weight", 1)]
    assert torch.equal(channels(rows(entries, axes)), entries["1.bias"])


@pytest.mark.parametrize("name", ["l1", "l2", "lamp"])
def test_weights_and_scales_count_biases_and_slopes_do_not(name, context):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Conv2d(4, 4, 3), nn.Flatten())
    entries = IMPORTANCES[name].entries(classifier(net), context())

    assert set(entries) == {"0.weight", "1.weight", "3.weight"}


def test_fpgm_compares_layers_not_norms_and_twins_are_at_no_distance(context):
    assert set(IMPORTANCES["fpgm"].entries(small(), context())) == {"conv.weight", "head.weight"}
    twins = torch.linspace(-1, 1, 500).expand(64, 500)
    assert IMPORTANCES["fpgm"].channels([twins]).max() < 1e-3


def test_bn_looks_at_scales_alone_whatever_their_sign(context):
    model = small()
    scales = model.net.norm.weight.detach().abs()
    with torch.no_grad():
        model.net.conv.weight.mul_(100)

    assert torch.equal(judged("bn", model, context()), scales)


def test_bn_falls_back_on_l2_where_scales_tell_nothing(context):
    model = small()
    without = [axis for axis in AXES if not axis[0].startswith("norm")]
    assert torch.equal(judged("bn", model, context(), without), judged("l2", model, context(), without))
    with torch.no_grad():
        model.net.conv.weight[PLANTED] = 0
        model.net.norm.weight.fill_(1)
    assert torch.equal(judged("bn", model, context()), judged("l2", model, context()))


def test_activation_falls_back_on_l2_where_no_output_was_heard(context):
    net = nn.Sequential(nn.ConvTranspose2d(1, 6, 3, bias=False), nn.Flatten(), nn.Linear(600, 10))
    values = IMPORTANCES["activation"].entries(model := classifier(net), context())

    scores = IMPORTANCES["activation"].channels(rows(values, [("0.weight", 1)]))
    assert torch.equal(scores, judged("l2", model, context(), [("0.weight", 1)]))


def test_random_draws_by_seed_and_place(context):
    model = classifier(nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)))
    group, other = [("1.weight", 0), ("2.weight", 1)], [("2.weight", 0)]
    scores = judged("random", model, context(seed=3), group)

    assert torch.equal(scores, judged("random", model, context(seed=3), group))
    assert not torch.equal(scores, judged("random", model, context(seed=4), group))
    assert not torch.equal(scores, judged("random", model, context(seed=3), other))
    # over many seeds no channel is favoured, and scores are spread as widely as they can
    many = torch.stack([judged("random", model, context(seed=seed), group) for seed in range(600)])
    assert many.argmin(1).bincount(minlength=6).min() > 60
    assert many.std() == pytest.approx(12**-0.5, rel=0.05)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_mute_branches_and_dead_groups_have_finite_scores(name, context):
    """timm begins the last norm of residual branches with zeros."""
    torch.manual_seed(0)
    model = students.create("resnet18", num_classes=10, in_chans=1, image_size=8, width=0.25)
    block = "layer2.0"
    axes = [(f"{block}.conv1.weight", 0), (f"{block}.bn1.weight", 0), (f"{block}.bn1.bias", 0)]
    axes.append((f"{block}.conv2.weight", 1))
    scores = judged(name, model, context(calibration=8), axes)
    dead = IMPORTANCES[name].channels([torch.zeros(6, 9), torch.zeros(6, 1)], normalised=True)

    for found, width in ((scores, model.net.layer2[0].conv1.out_channels), (dead, 6)):
        assert found.shape == (width,)
        assert found.isfinite().all()
        assert found.min() >= 0
    assert name == "random" or dead.max() == 0


@pytest.mark.parametrize("name", IMPORTANCES)
def test_the_model_and_the_random_state_are_left_as_they_were(name, context):
    model = small().train()
    model.net.conv.eval()
    model.net.head.weight.requires_grad_(False)
    model.net.conv.weight.grad = torch.ones_like(model.net.conv.weight)
    before, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    IMPORTANCES[name].entries(model, context(calibration=100))

    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    for (path, value), old in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, old), path
    for (path, value), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert value.requires_grad == old.requires_grad, path
        assert (value.grad is None) == (path != "net.conv.weight"), path
    assert (model.net.conv.weight.grad == 1).all()


def test_gradients_and_activations_are_those_of_evaluation(context):
    context, model = context(), small()
    images, labels = context.labelled()
    loss = cross_entropy(model(images), labels)
    (gradient,) = torch.autograd.grad(loss, model.net.head.weight)

    expected = model.net.head.weight * gradient
    assert torch.allclose(IMPORTANCES["taylor"].entries(model.train(), context)["head.weight"], expected, atol=1e-6)
    said = model.eval().net.norm(model.net.conv(images)).abs().mean((0, 2, 3))
    assert torch.allclose(IMPORTANCES["activation"].entries(model.train(), context)["norm.bias"], said)


class Keeping(nn.Linear):
    """Like LeViT's attention, keeps in evaluation what it made of its weights."""

    kept: Tensor | None = None

    def train(self, mode: bool = True) -> Keeping:
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.kept is None:
            self.kept = self.weight * 1
        return x @ (self.weight if self.training else self.kept).T + self.bias


@pytest.mark.parametrize("name", ["taylor", "movement", "obd"])
def test_what_a_net_keeps_of_its_weights_is_not_taken_for_them(name, context):
    model, keeping = small(), small()
    keeping.net.head = Keeping(CHANNELS, 10)
    keeping.load_state_dict(model.state_dict())
    with torch.no_grad():
        keeping.eval()(context().images())  # what it keeps now has no gradient

    expected = IMPORTANCES[name].entries(model, context(calibration=70))
    for path, value in IMPORTANCES[name].entries(keeping, context(calibration=70)).items():
        assert torch.allclose(value, expected[path], atol=1e-6), path


@pytest.mark.parametrize("name", ["taylor", "movement", "obd"])
def test_a_parameter_that_nothing_depends_on_scores_zero(name, context):
    model = small()
    model.net.idle = nn.Linear(3, 3)
    assert not IMPORTANCES[name].entries(model, context())["idle.weight"].any()


@pytest.mark.parametrize("name", IMPORTANCES)
def test_only_what_looks_at_images_needs_some(name, context):
    if name in DRIVEN:
        with pytest.raises(InputError, match=r"^calibration: 0: at least one training image is needed"):
            IMPORTANCES[name].entries(small(), context(calibration=0))
    else:
        assert IMPORTANCES[name].entries(small(), context(calibration=0))


@pytest.mark.parametrize("name", DRIVEN)
def test_logits_that_are_not_finite_are_refused(name, context):
    model = small()
    with torch.no_grad():
        model.net.head.bias[3] = math.nan
    with pytest.raises(InputError, match="gives NaN or infinite logits"):
        IMPORTANCES[name].entries(model, context())
