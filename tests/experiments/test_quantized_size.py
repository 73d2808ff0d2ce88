from __future__ import annotations

import pytest

from experiments.quantized_size import FORMS, SizeConfig, compare


def test_a_row_for_each_form_relative_to_float():
    config = SizeConfig("cifar_resnet8", classes=7, image_size=16, seconds=0.2)
    head, _, whole, *forms = [[cell.strip() for cell in line.split("|")[1:-1]] for line in compare(config).splitlines()]

    assert head[1:4] == ["MB", "MiB", "integer convolutions"]
    assert whole[0] == "float"
    assert whole[3:] == ["0 of 9", "0.00", "1.00", "1.00"]
    assert [row[0] for row in forms] == [*FORMS]
    for row in forms:
        assert row[3] == "9 of 9"
        assert float(row[1]) < 0.32 * float(whole[1])
        assert float(row[1]) == pytest.approx(float(row[2]) * 2**20 / 1e6, abs=0.002)
        assert 0 < float(row[4]) < 0.5
