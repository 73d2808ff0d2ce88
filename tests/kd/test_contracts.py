"""Every loss and every regime that ships has a contract class in these tests."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import kd.losses
import kd.regimes
from kd.loss import Loss
from kd.losses import KD
from kd.regimes import Regime
from kd.testing import LossContract, RegimeContract


def shipped(package, base):
    """The subclasses of `base` that are defined anywhere in a package."""
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    modules = map(importlib.import_module, names)
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {value for value in found if issubclass(value, base) and value is not base and value.__module__ in names}


def under_contract(folder):
    """The types that the contract classes in the test files below `folder` make."""
    made = set()
    for path in sorted(folder.rglob("test_*.py")):
        spec = importlib.util.spec_from_file_location(f"contracts_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for value in vars(module).values():
            contracts = (LossContract, RegimeContract)
            if isinstance(value, type) and issubclass(value, contracts) and value not in contracts:
                contract = value()
                getattr(contract, "setup_method", lambda: None)()
                made.add(type(contract.make()))
    return made


@pytest.mark.parametrize(("package", "base"), [(kd.losses, Loss), (kd.regimes, Regime)])
def test_all_that_ships_is_under_contract(package, base):
    kinds = shipped(package, base)
    assert len(kinds) >= 4
    missing = kinds - under_contract(Path(__file__).parent / package.__name__.removeprefix("kd."))
    assert not missing, f"no contract class makes {sorted(kind.__name__ for kind in missing)}"


def test_a_loss_without_a_contract_is_missed(tmp_path):
    (tmp_path / "test_nothing.py").write_text("from kd.testing import LossContract\n")
    assert KD not in under_contract(tmp_path)
