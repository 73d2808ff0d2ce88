from __future__ import annotations

import json

import pytest
import torch

from experiments import cli, decomposition_time
from experiments.decomposition_time import CP, TUCKER, TimeConfig, kernel, ranks


@pytest.mark.parametrize("channels", [8, 64, 256])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_ranks_are_the_largest_that_the_share_allows(channels, share):
    size = {CP: lambda r: r * (2 * channels + 9), TUCKER: lambda r: 9 * r * r + 2 * r * channels}
    for method, rank in ranks(channels, share).items():
        assert size[method](rank) <= share * 9 * channels**2 < size[method](rank + 1)


def test_directions_of_a_kernel_matter_less_and_less():
    weight = kernel(32)
    for mode in (0, 1):
        values = torch.linalg.svdvals(weight.transpose(0, mode).flatten(1))
        assert values[0] > 10 * values[-1] > 0


def test_ours_stands_beside_tensorlys(tmp_path, capfd):
    place = tmp_path / "told.json"
    arguments = ["--channels", "[12, 24]", "--shares", "[0.5]", "--rounds", "1", "--json", str(place)]
    threads = torch.get_num_threads()
    try:
        assert cli.run("decomposition_time", TimeConfig, decomposition_time.main, arguments) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(place.read_text())["rows"]
    assert [(row["channels"], row["method"]) for row in rows] == [(12, CP), (12, TUCKER), (24, CP), (24, TUCKER)]
    for row in rows:
        assert 0 < row["lost"]["ours"] < 1.1 * row["lost"]["tensorly"] < 0.2
        assert min(row["seconds"].values()) > 0
    lines = capfd.readouterr().out.splitlines()[2:]
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[3] == str(row["rank"])
        assert cells[4:6] == [f"{row['seconds'][whose]:.2f}" for whose in ("ours", "tensorly")]
        assert cells[6] == f"{row['seconds']['tensorly'] / row['seconds']['ours']:.1f}×"
        assert cells[7:] == [f"{row['lost'][whose]:.2%}" for whose in ("ours", "tensorly")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--channels", "[]"], "channels: []: must be 2 or more, of each"),
        (["--channels", "[64, 1]"], "channels: [64, 1]: must be 2 or more, of each"),
        (["--shares", "[0.5, 1.0]"], "shares: [0.5, 1.0]: must be above 0 and below 1, each"),
        (["--rounds", "0"], "rounds: 0: must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_end_in_one_line(words, message, capfd):
    assert cli.run("decomposition_time", TimeConfig, decomposition_time.main, words) == 2
    assert capfd.readouterr().err.strip().endswith(message)
