"""What TensorBoard is told of a run: training and test in one chart, the network, the configuration, the result."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from cifar_resnet.training.classifier import ImageClassifier

PARTS = ("train", "val", "test")
"""Of the images, whose figures Lightning logs as ``train/loss`` and the like."""


class RunLogger(TensorBoardLogger):
    """Logs a run to its folder.

    TensorBoard draws in one chart what has the same tag in several runs. So ``train/loss`` and ``test/loss`` become
    ``epoch/loss`` of the folders ``train`` and ``test`` inside the run's, and its first group shows accuracy and loss.

    Attributes:
        complete: of which images nothing more is charted, since each epoch is there and the test would repeat the last.

    Args:
        folder: of the run, ``.../lightning_logs/version_N``.
        purge_step: TensorBoard forgets what an earlier process logged for this step and later ones.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        super().__init__(
            folder.parent.parent,
            folder.parent.name,
            folder.name,
            default_hp_metric=False,
            purge_step=purge_step,
        )
        self.complete: set[str] = set()
        self._purge_step = purge_step
        self._writers: dict[str, SummaryWriter] = {}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures, those of an epoch to the folder of the images that they are of."""
        others = {}
        for name, value in metrics.items():
            part, _, figure = name.partition("/")
            if part not in PARTS:
                others[name] = value
            elif part not in self.complete:
                self._writer(part).add_scalar(f"epoch/{figure}", value, step)
        others.pop("epoch", None)  # Lightning adds the number of the epoch to all that it logs
        super().log_metrics(others, step)

    @rank_zero_only
    def save(self) -> None:
        """Write to the disk what was logged."""
        super().save()
        for writer in self._writers.values():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End it."""
        super().finalize(status)
        for writer in self._writers.values():
            writer.close()

    def log_network(self, classifier: ImageClassifier) -> None:
        """Log the network's graph; a copy is traced, so that the network stays as it is. Raises what tracing raises."""
        network, pixels = copy.deepcopy(classifier.network), classifier.normalize(classifier.example_input_array)
        with redirect_stdout(StringIO()):  # TensorBoard announces a failure before it raises it
            self.experiment.add_graph(network, pixels)

    def log_table(self, name: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Log a table, which TensorBoard shows under its texts."""
        lines = [headings, ["---"] * len(headings), *rows]
        table = "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)
        self.experiment.add_text(name, table, 0)

    def log_code(self, name: str, text: str) -> None:
        """Log lines as they are, which TensorBoard shows under its texts."""
        self.experiment.add_text(name, f"```\n{text}\n```", 0)

    def _writer(self, part: str) -> SummaryWriter:
        if part not in self._writers:
            self._writers[part] = SummaryWriter(Path(self.log_dir, part), purge_step=self._purge_step)
        return self._writers[part]
