"""The networks: plain ``torch.nn``, usable without Lightning; three of this project, and those of two libraries.

Each takes normalized images, float ``[N, 3, 32, 32]``, and returns logits ``[N, num_classes]``.
"""

from cifar_resnet.models.custom_resnet import CustomResNet
from cifar_resnet.models.libraries import from_timm, from_torchvision
from cifar_resnet.models.resnet9 import ResNet9
from cifar_resnet.models.resnet18 import resnet18

__all__ = ["CustomResNet", "ResNet9", "from_timm", "from_torchvision", "resnet18"]
