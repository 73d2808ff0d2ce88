from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.coding import _apart, _gaps, _joined, _places, coded, decoded
from compress.entropy import entropy


def drawn(shape, density=1.0, values=0, dtype=torch.float32):
    draws = torch.Generator().manual_seed(0)
    made = torch.randn(shape, generator=draws)
    if values:
        made = torch.randn(values, generator=draws)[torch.randint(values, shape, generator=draws)]
    return made.masked_fill(torch.rand(shape, generator=draws) >= density, 0).to(dtype)


TENSORS = {
    "plain": drawn((7, 5)),
    "a number": torch.tensor(3),
    "nothing": torch.zeros(0, 4),
    "zeros": torch.zeros(9, 9),
    "sparse": drawn((40, 30, 3, 3), 0.1),
    "sparse half": drawn((40, 30), 0.1, dtype=torch.float16),
    "sparse bfloat16": drawn((40, 30), 0.1, 8, torch.bfloat16),
    "sparse double": drawn((40, 30), 0.1, 8, torch.float64),
    "very sparse": drawn((500, 400), 0.0005, 2),
    "clustered": drawn((64, 64), 1, 256),
    "clustered with a few zeros": drawn((64, 64), 0.9, 256),
    "both": drawn((64, 64, 3, 3), 0.3, 13),
    "two values": drawn((64, 64), 0.5, 2),
    "one value": drawn((64, 64), 0.5, 1),
    "odd numbers": torch.tensor([[0.0, -0.0, float("nan"), float("inf"), 1e-45]] * 9),
    "integers": torch.tensor([[0, -5, 2**40]] * 9),
    "booleans": torch.tensor([True, False, False]),
    "complex": torch.complex(drawn((3, 4)), drawn((3, 4))),
    "not contiguous": drawn((30, 40), 0.2).T,
}


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize("coder", ["zstd", "range"])
@pytest.mark.parametrize("name", TENSORS)
def test_every_bit_comes_back(name, coder):
    tensor = TENSORS[name]
    made = coded("it", tensor, coder)
    back = decoded(made.record, iter(made.streams))
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(bits(back), bits(tensor))
    assert made.plain == tensor.numel() * tensor.element_size()
    assert made.size == sum(map(len, made.streams))


def test_what_is_told_of_a_tensor():
    told = {
        name: coded("it", TENSORS[name]) for name in ("plain", "sparse", "clustered", "both", "very sparse", "zeros")
    }
    assert {name: "form" in made.record for name, made in told.items()} == {
        "plain": False,
        "sparse": True,
        "clustered": False,
        "both": True,
        "very sparse": True,
        "zeros": True,
    }
    assert told["both"].clusters == 13
    assert told["both"].record["bits"] == 4
    assert told["clustered"].clusters == len(TENSORS["clustered"].unique())
    assert told["plain"].clusters == told["sparse"].clusters == 0
    assert told["both"].nonzero == int(TENSORS["both"].count_nonzero())
    assert coded("it", drawn((300, 300), 0.04)).record["form"] == "gaps"
    assert coded("it", drawn((64, 64), 0.5)).record["form"] == "mask"


def test_size_is_near_the_bound_of_positions_and_clusters_told_apart():
    tensor = drawn((256, 256, 3, 3), 0.2, 16)
    kept = tensor != 0
    share = float(kept.float().mean())
    positions = tensor.numel() * float(torch.special.entr(torch.tensor([share, 1 - share])).sum()) / 0.6931 / 8
    _, numbers = tensor[kept].unique(return_inverse=True)
    for coder, above in (("zstd", 1.02), ("range", 1.002)):
        made = coded("it", tensor, coder)
        assert made.bound == pytest.approx(positions + entropy(numbers.numpy()) + 4 * 16, rel=1e-3)
        assert made.bound < made.size < above * made.bound + 600


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=0, max_size=20), st.integers(0, 600))
def test_gaps_of_any_length(gaps, rest):
    there = torch.zeros(sum(gaps) + len(gaps) + rest, dtype=torch.bool)
    places = [sum(gaps[: n + 1]) + n for n in range(len(gaps))]
    there[places] = True
    assert _places("gaps", _gaps(there.numpy()), len(there)).tolist() == places


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_indices_at_their_bits(width, data):
    given_ = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=30))
    stream = _joined(torch.tensor(given_, dtype=torch.uint8).numpy(), width)
    assert len(stream) == -(-len(given_) * width // 8)
    assert _apart(stream, width, len(given_)).tolist() == given_


def test_streams_that_do_not_fit_are_refused():
    made = coded("it", TENSORS["both"])
    assert made.record["form"] == "mask"
    for harm in ({"shape": [64, 64]}, {"shape": [640, 64, 3, 3]}, {"bits": 8}, {"bits": 2}, {"form": "gaps"}):
        with pytest.raises((ValueError, IndexError)):
            decoded(made.record | harm, iter(made.streams))


def test_a_zero_beside_256_values_costs_its_position_and_no_more():
    """`Cluster` leaves zeros alone: they are one value more than a table holds."""
    dense, tensor = (drawn((256, 256), density, 256) for density in (1, 0.9))
    assert len(tensor.unique()) == 257
    made = coded("it", tensor)
    assert made.clusters == 256
    assert made.size < coded("it", dense).size + tensor.numel() / 8
