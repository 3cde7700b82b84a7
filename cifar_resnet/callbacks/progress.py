"""The progress bar of training in a terminal."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.console import RenderableType
from rich.progress import ProgressColumn, Task


class KnownSpeedColumn(ProcessingSpeedColumn):
    """Steps a second; nothing as long as there is but one, where Lightning writes 0.00."""

    def render(self, task: Task) -> RenderableType:
        """Return the cell."""
        return super().render(task) if task.speed else ""


class StepProgressBar(RichProgressBar):
    """Lightning's bar, with the figures of the last logged step.

    It reads them when they are logged. What is logged with ``prog_bar=True``, Lightning reads from the device after
    every step, and a GPU stands still until the host has gone on.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self._figures: dict[str, float] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:  # type: ignore[override]
        """Return what stands at the right end of the bar."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            logged = trainer.logged_metrics.items()
            self._figures = {
                name.removeprefix("step/"): value.item() for name, value in logged if name.startswith("step/")
            }
        return self._figures

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Return what the bar consists of."""
        return [*super().configure_columns(trainer)[:-1], KnownSpeedColumn(self.theme.processing_speed)]

    def _get_train_description(self, current_epoch: int) -> str:
        # Epochs count from 1, as in the line that follows each; Lightning's bar counts from 0. One width, no flicker.
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(len(self.validation_description))
