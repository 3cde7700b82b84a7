"""The average of the weights, which is what is evaluated and saved."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class MovingAverage(EMAWeightAveraging):
    """Lightning's exponential moving average of weights and batch norm statistics.

    Training goes on with the weights themselves. Validation, the test and ``state_dict`` in a checkpoint have the
    average, so whoever reads one need not know of it.

    Args:
        decay: share of the average that a step keeps, below 1.
        every: steps from one update to the next, which keeps ``decay`` to the power of ``every``, as Page's does
            (github.com/davidcpage/cifar10-fast, bag_of_tricks.ipynb: 0.99 and 5).
    """

    def __init__(self, decay: float, every: int):
        super().__init__(decay=decay**every, update_every_n_steps=every)
        self.averaged = {"decay": decay, "every": every}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with the weights as they are, on the device that trains, to which Lightning moves them after this."""
        if stage == "fit":
            pl_module.to(trainer.strategy.root_device)
        super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average and, beside it, the weights, and what is needed to go on averaging."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["averaged"] = self.averaged

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the average where the training that is gone on with was at its end, which Lightning leaves out."""
        self.on_train_end(trainer, pl_module)
