"""The literature's CIFAR zoo, registered in timm's registry as cifar_<name> (the nets of RepDistiller's tables)."""

from students.cifar.registry import ZOO

__all__ = ["ZOO"]
