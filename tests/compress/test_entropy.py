from __future__ import annotations

import sys

import numpy as np
import pytest

from compress.entropy import _ranged, _unranged, entropy, squeezed, whole
from kd.errors import InputError


def stream(values) -> np.ndarray:
    return np.asarray(values, np.uint8)


DRAWS = np.random.default_rng(0)
STREAMS = {
    "nothing": stream([]),
    "one": stream([7]),
    "the same": stream([200] * 5000),
    "two": stream([0, 255] * 9 + [0]),
    "noise": stream(DRAWS.integers(0, 256, 5000)),
    "gaps": stream(np.minimum(DRAWS.geometric(0.04, 50000) - 1, 255)),
    "one among many": stream([0] * 99999 + [1]),
    "all once among many": stream([*[0] * 100000, *range(256)]),
}


@pytest.mark.parametrize("coder", ["zstd", "range"])
@pytest.mark.parametrize("name", STREAMS)
def test_streams_come_back(name, coder):
    given = STREAMS[name]
    how, content = squeezed(given, coder)
    assert how in ("raw", "zstd", coder)
    assert len(content) <= len(given)
    assert np.array_equal(whole(how, content, len(given)), given)


@pytest.mark.parametrize("name", STREAMS)
def test_the_range_coder_alone_gives_back_all_streams(name):
    if name != "nothing":
        assert np.array_equal(_unranged(_ranged(STREAMS[name]), len(STREAMS[name])), STREAMS[name])


def test_entropy_by_its_formula_and_coders_near_it():
    given = stream(np.minimum(DRAWS.geometric(0.04, 500000) - 1, 255))
    shares = [(given == value).mean() for value in set(given.tolist())]
    assert entropy(given) == pytest.approx(-sum(p * np.log2(p) for p in shares) * len(given) / 8)
    assert entropy(STREAMS["the same"]) == entropy(STREAMS["nothing"]) == 0
    assert entropy(np.array([True, False, False, False])) == pytest.approx((2 + 3 * np.log2(4 / 3)) / 8)
    small, smaller = (len(squeezed(given, coder)[1]) for coder in ("zstd", "range"))
    assert entropy(given) < smaller < small < 1.02 * entropy(given)
    table = 2 + 2 * 256
    assert smaller < 1.001 * entropy(given) + table


def test_what_is_no_stream_of_that_size_is_refused():
    how, content = squeezed(STREAMS["gaps"])
    for harm in (content[:-9], content[9:], b""):
        with pytest.raises(ValueError):
            whole(how, harm, 50000)
    for coder, size in (("raw", 3), ("huffman", 4)):
        with pytest.raises(ValueError):
            whole(coder, b"four", size)


def test_the_range_coder_names_its_extra(monkeypatch):
    content = _ranged(STREAMS["gaps"])
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert squeezed(STREAMS["gaps"])[0] == "zstd"
    for work in (lambda: squeezed(STREAMS["gaps"], "range"), lambda: whole("range", content, 50000)):
        with pytest.raises(InputError, match=r"coder: range: needs the extra: pip install 'retort\[coding\]'"):
            work()


@pytest.mark.parametrize("name", STREAMS)
def test_with_the_range_coder_nothing_is_larger(name):
    repeats = np.tile(STREAMS[name][:200], 200)  # where zstandard's slow level finds more than frequencies
    for given in (STREAMS[name], repeats):
        assert len(squeezed(given, "range")[1]) <= len(squeezed(given)[1])
