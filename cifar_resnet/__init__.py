"""Train a custom ResNet on CIFAR-10 under One Cycle with found learning rates, and see what it gets wrong."""
