from __future__ import annotations

import pytest

from experiments.pruned_latency import LatencyConfig, compare


def test_a_row_for_each_way_relative_to_the_whole_net():
    config = LatencyConfig("cifar_resnet8", target=0.5, by="params", round_to=(1, 8), image_size=16, seconds=1.0)
    head, _, whole, *pruned = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in compare(config).splitlines()
    ]

    assert head[3:] == [f"{runtime}, batch {batch}" for runtime in ("torch", "onnxruntime") for batch in (1, 32)]
    assert whole == ["whole", "1.000", "1.000", "1.00", "1.00", "1.00", "1.00"]
    assert [row[0] for row in pruned] == ["multiples of 1", "multiples of 8"]
    assert float(pruned[0][1]) == pytest.approx(0.5, abs=0.03)
    assert all(0 < float(cell) < 10 for row in pruned for cell in row[1:])
