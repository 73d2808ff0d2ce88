import math

import pytest
import torch
from torch import nn

from kd.batch import View
from kd.evaluate import BINS, evaluate, inference, score


def naive(logits, labels, teacher):
    """Every figure by loops over single samples in float64."""
    n = len(labels)
    hits = agree = nll = 0.0
    bins = [[0, 0.0, 0.0] for _ in range(BINS)]
    for row, y, other in zip(logits.double().tolist(), labels.tolist(), teacher.tolist(), strict=True):
        exps = [math.exp(v) for v in row]
        probs = [e / sum(exps) for e in exps]
        answer = max(range(len(row)), key=lambda c: row[c])
        hits += answer == y
        agree += answer == max(range(len(other)), key=lambda c: other[c])
        nll -= math.log(probs[y])
        place = bins[min(int(max(probs) * BINS), BINS - 1)]
        place[0], place[1], place[2] = place[0] + 1, place[1] + max(probs), place[2] + (answer == y)
    ece = sum(c / n * abs(conf / c - acc / c) for c, conf, acc in bins if c)
    return 100 * hits / n, 100 * agree / n, nll / n, 100 * ece


def test_scores_equal_naive_loops():
    torch.manual_seed(0)
    logits, teacher, labels = 2 * torch.randn(97, 5), torch.randn(97, 5), torch.randint(5, (97,))
    metrics = score(logits, labels, teacher)
    figures = (metrics.top1, metrics.agreement, metrics.nll, metrics.ece)
    assert figures == pytest.approx(naive(logits, labels, teacher), rel=1e-9)
    assert metrics.count == 97
    assert score(logits, labels).agreement is None


def test_batches_of_any_size_give_the_same_scores_and_modes_are_put_back():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    net[1].eval()  # a mode of its own, which must survive
    x, y = torch.rand(20, 3, 2, 2), torch.randint(3, (20,))

    def views(size):
        return (
            View(x[i : i + size], y[i : i + size], torch.arange(i, min(i + size, 20)), -1) for i in range(0, 20, size)
        )

    whole, parts = evaluate(net, views(20), net), evaluate(net, views(7), net)
    assert whole.top1 == parts.top1
    assert whole.nll == pytest.approx(parts.nll)
    assert whole.agreement == 100
    assert net.training
    assert net[2].training
    assert not net[1].training


def test_logits_that_are_not_finite_show_in_the_likelihood():
    logits = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [math.inf, math.inf]])
    assert math.isnan(score(logits, torch.tensor([0, 1, 0])).nll)


def test_inference_puts_modes_back_after_an_error():
    net = nn.Linear(1, 1)
    with inference(net):
        assert not net.training
        assert not torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), inference(net):
        _ = 1 / 0
    assert net.training
    assert torch.is_grad_enabled()
