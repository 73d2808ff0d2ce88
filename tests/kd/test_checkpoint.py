import os

import pytest
import torch

from kd.checkpoint import Checkpoints, atomic_write, load_json, load_tree, save_json, save_tree
from kd.errors import InputError


def tree():
    shared = torch.arange(6.0)
    return {
        "state": {0: {"step": torch.tensor(3.0), "momentum": torch.randn(2, 3, dtype=torch.float64)}},
        "views": (shared[:3], shared, torch.tensor([], dtype=torch.int64), torch.randn(2, 4, 4, 4)[:, ::2]),
        "plain": [1, 2.5, "text", None, True, float("-inf"), torch.bfloat16],
        "half": torch.randn(3).bfloat16(),
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_round_trip_keeps_types_keys_and_bits(tmp_path):
    saved = tree()
    save_tree(tmp_path / "x.safetensors", saved)
    assert equal(load_tree(tmp_path / "x.safetensors"), saved)


def test_an_object_is_refused_rather_than_pickled(tmp_path):
    with pytest.raises(TypeError, match="plain values"):
        save_tree(tmp_path / "x.safetensors", {"object": object()})
    assert not list(tmp_path.iterdir())


def test_every_altered_byte_of_the_tensors_and_every_cut_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tree(path, {"w": torch.arange(8, dtype=torch.uint8)})
    whole = path.read_bytes()
    for place in range(len(whole) - 8, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="altered"):
            load_tree(path)
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="torn"):
            load_tree(path)


def test_a_changed_plain_value_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tree(path, {"epoch": 17, "w": torch.ones(2)})
    path.write_bytes(path.read_bytes().replace(b"17", b"18"))
    with pytest.raises(InputError, match="altered"):
        load_tree(path)


def test_the_last_two_are_kept_and_a_torn_one_gives_way_to_the_one_before(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {"step": step})
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["step-000000010.safetensors", "step-000000015.safetensors"]
    newest = tmp_path / files[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert checkpoints.latest() == {"step": 10}
    told = capsys.readouterr().err
    assert files[-1] in told
    assert "torn" in told
    (tmp_path / files[0]).write_bytes(b"")
    with pytest.raises(InputError, match="torn"):
        checkpoints.latest()


def test_what_a_kill_between_write_and_rename_left_is_never_read_and_goes_with_the_next_write(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, {"step": 5})
    with monkeypatch.context() as dying:
        dying.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        dying.setattr(type(tmp_path), "unlink", lambda *_, **__: None)  # the killed clean nothing up
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(10, {"step": 10})
    assert len(list(tmp_path.iterdir())) == 2
    assert checkpoints.latest() == {"step": 5}
    checkpoints.save(10, {"step": 10})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-000000005.safetensors", "step-000000010.safetensors"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x"
    atomic_write(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_and_no_change_of_it_passes(tmp_path):
    content = {"a": [1, 2.5, None, True], "text": "ä", "deep": {"0": [], "nan": float("inf")}}
    save_json(tmp_path / "x.json", content)
    assert load_json(tmp_path / "x.json") == content
    whole = (tmp_path / "x.json").read_bytes()
    for place in (place for place, byte in enumerate(whole) if not chr(byte).isspace()):  # blanks mean nothing
        altered = bytearray(whole)
        altered[place] ^= 1
        for torn in (bytes(altered), whole[:place]):
            (tmp_path / "x.json").write_bytes(torn)
            with pytest.raises(InputError, match=r"x\.json"):
                load_json(tmp_path / "x.json")
