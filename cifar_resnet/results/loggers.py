"""Where people already look at runs: Lightning's loggers for CSV, MLflow and W&B, beside TensorBoard's."""

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from cifar_resnet.cli.schema import Train
from cifar_resnet.errors import InputError, RunError, one_line

PROJECT = "cifar-resnet"


def check_installed(names: Iterable[str]) -> None:
    """Raise `InputError` for a logger whose package is not installed; the one for CSV needs none."""
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(
                f"loggers=[{name}] needs what is not installed: pip install 'cifar-resnet[{name}]'"
            ) from error


def open_logger(name: str, config: Train, folder: Path, step: int) -> Logger:
    """Begin to log a run.

    The environment variables ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, ``WANDB_PROJECT`` and ``WANDB_DIR``
    say where, as they do elsewhere; without them MLflow's and W&B's files lie beside ``lightning_logs/``.

    Args:
        name: ``csv``, ``mlflow`` or ``wandb``.
        config: what is run.
        folder: of the run.
        step: the optimizer step it goes on from; what the CSV file has of it and later ones is forgotten.

    Raises:
        InputError: the logger cannot begin, such as where nobody is logged in or no server answers.
    """
    if name == "csv":
        return _open_csv(folder, step)
    title = f"{config.name}/{folder.name}" if config.name else folder.name
    root = config.trainer.default_root_dir
    try:
        logger = _mlflow_logger(title, root) if name == "mlflow" else _wandb_logger(title, root)
        _ = logger.experiment  # Lightning begins a run where it is first asked for
    except Exception as error:  # each has exceptions of its own
        raise InputError(f"loggers=[{name}] cannot begin: {one_line(error)}") from error
    return logger


def close_logger(logger: Logger, folder: Path, succeeded: bool) -> None:
    """Log the pictures that lie in the run's folder, and end the logger's run."""
    pictures = sorted(folder.glob("*.png"))
    if isinstance(logger, MLFlowLogger):
        for picture in pictures:
            logger.experiment.log_artifact(logger.run_id, str(picture), "pictures")
    if isinstance(logger, WandbLogger):
        for picture in pictures:
            logger.log_image(f"pictures/{picture.stem}", [str(picture)])
    logger.finalize("success" if succeeded else "failed")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=0 if succeeded else 1)  # else the next run of this process would be in it


@contextmanager
def naming_failures() -> Iterator[None]:
    """Raise `RunError` where a logger that has begun raises an exception of its own: its server is lost, say."""
    try:
        yield
    except Exception as error:
        name = type(error).__module__.partition(".")[0]
        if name not in ("mlflow", "wandb"):
            raise
        remedy = "see to it, or leave it out; ckpt_path=last goes on with a training"
        raise RunError(f"loggers=[{name}] has failed: {one_line(error)}: {remedy}") from error


def _open_csv(folder: Path, step: int) -> CSVLogger:
    """Log to ``metrics.csv``; Lightning begins the file anew, so what it had goes into the new one."""
    file = folder / "metrics.csv"
    before = list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []
    logger = CSVLogger(folder.parent, name="", version=folder.name)
    for row in before:
        if int(row["step"]) < step:
            logger.log_metrics({name: value for name, value in row.items() if value}, int(row["step"]))  # type: ignore[misc]
    logger.save()
    return logger


def _mlflow_logger(title: str, root: str) -> MLFlowLogger:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        uri = Path(root, "mlruns").absolute().as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks for it where no server is wanted
    return MLFlowLogger(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), run_name=title, tracking_uri=uri)


def _wandb_logger(title: str, root: str) -> WandbLogger:
    project, folder = os.environ.get("WANDB_PROJECT", PROJECT), os.environ.get("WANDB_DIR", root)
    return WandbLogger(title, save_dir=folder, project=project)
