from __future__ import annotations

import pytest

from kd.data import Augment, DataConfig, load
from kd.errors import InputError

BAD = [
    (DataConfig(val_fraction=0.0), "data.val_fraction"),
    (DataConfig(val_fraction=1.0), "data.val_fraction"),
    (DataConfig(val_fraction=-0.2), "data.val_fraction"),
    (DataConfig(val_fraction=float("nan")), "data.val_fraction"),
    (DataConfig(train_size=0), "data.train_size"),
    (DataConfig(train_size=-5), "data.train_size"),
    (DataConfig(image_size=0), "data.image_size"),
    (DataConfig(image_size=-8), "data.image_size"),
    (DataConfig(workers=-1), "data.workers"),
    (DataConfig(augment=Augment(crop=-1)), "data.augment.crop"),
    (DataConfig(augment=Augment(crop=8)), "data.augment.crop"),
    (DataConfig(augment=Augment(erase=-0.1)), "data.augment.erase"),
    (DataConfig(augment=Augment(erase=1.1)), "data.augment.erase"),
    (DataConfig(augment=Augment(mixup=-1.0)), "data.augment.mixup"),
    (DataConfig(augment=Augment(cutmix=float("inf"))), "data.augment.cutmix"),
    (DataConfig(augment=Augment(scale=(0.0, 1.0))), "data.augment.scale"),
    (DataConfig(augment=Augment(scale=(0.9, 0.5))), "data.augment.scale"),
    (DataConfig(augment=Augment(scale=(0.5, 1.5))), "data.augment.scale"),
    (DataConfig(augment=Augment(views=0)), "data.augment.views"),
]


@pytest.mark.parametrize(("config", "field"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_values_out_of_range_are_named(config: DataConfig, field: str) -> None:
    with pytest.raises(InputError) as caught:
        load(config)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
