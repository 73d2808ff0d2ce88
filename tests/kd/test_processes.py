import pytest
import torch

from kd.processes import on_cpu, processes


@pytest.mark.parametrize(("asked", "expected"), [("1", True), ("True", True), ("yes", True), ("0", False), ("", False)])
def test_accelerators_are_left_alone_on_request(monkeypatch, asked, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    assert on_cpu() == expected


def test_without_an_accelerator_there_is_no_choice(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert on_cpu()


def test_one_process_is_the_first():
    assert (processes().num_processes, processes().process_index) == (1, 0)
