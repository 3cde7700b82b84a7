"""Every key of every command, by its sections. The defaults are in ``configs/`` alone."""

from operator import attrgetter
from typing import Literal, Self

from pydantic import Field, model_validator

from cifar_resnet.cli.kinds import Loggers, Name, Text
from cifar_resnet.cli.sections import (
    Averaging,
    Checkpoint,
    Classifier,
    Data,
    Device,
    Errors,
    Gallery,
    Images,
    LrSearch,
    Model,
    Optimizer,
    Schedule,
    Section,
    Trainer,
)
from cifar_resnet.errors import InputError


class Train(Section):
    groups = ("data", "model", "optimizer", "experiment")
    name: Name | None = Field(description="of the folder in lightning_logs/ that the run's is made in; null: none")
    seed: int = Field(ge=0, le=2**32 - 1, description="of weights, splits, order, augmentation and the search")
    ckpt_path: Text | None = Field(description="last: go on with the newest unfinished run like this; or a checkpoint")
    loggers: Loggers = Field(description="of the run beside TensorBoard, such as [csv,mlflow]")
    data: Data
    model: Model
    optimizer: Optimizer
    schedule: Schedule
    lr_search: LrSearch
    averaging: Averaging
    checkpoint: Checkpoint
    classifier: Classifier
    gallery: Gallery
    errors: Errors
    trainer: Trainer

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for low, high in (
            ("schedule.peak_epoch", "trainer.max_epochs"),
            ("schedule.lr_min", "schedule.lr_max"),
            ("schedule.lr_end", "schedule.lr_max"),
            ("lr_search.lowest", "lr_search.highest"),
        ):
            below, above = attrgetter(low, high)(self)
            if below is not None and above is not None and below >= above:
                raise InputError(f"{low}={below}: must be below {high}={above}")
        schedule, epochs = self.schedule, self.trainer.max_epochs
        if schedule.flat_epochs and schedule.peak_epoch + schedule.flat_epochs >= epochs:
            raise InputError(
                f"schedule.flat_epochs={schedule.flat_epochs}: with schedule.peak_epoch={schedule.peak_epoch} must be "
                f"below trainer.max_epochs={epochs}"
            )
        if self.model.ghost and self.trainer.sync_batchnorm:
            raise InputError(
                f"model.ghost={self.model.ghost}: trainer.sync_batchnorm=true would take it away; choose one"
            )
        if (self.data.cutout or 0) > self.data.image_size:
            raise InputError(f"data.cutout={self.data.cutout}: is larger than data.image_size={self.data.image_size}")
        clip = self.trainer.gradient_clip_val
        if clip and self.optimizer.fused and "16" in str(self.trainer.precision):
            raise InputError(f"trainer.gradient_clip_val={clip}: add optimizer.fused=false to clip in mixed precision")
        return self


class LrFind(Train):
    @model_validator(mode="after")
    def _is_not_answered_already(self) -> Self:
        for key in ("schedule.lr_min", "schedule.lr_max", "ckpt_path", "trainer.fast_dev_run"):
            if value := attrgetter(key)(self):
                raise InputError(f"{key}={value}: a search finds the bounds anew, by all of its steps; leave it out")
        return self


class Trained(Section):
    ckpt: Text = Field(description="the checkpoint, such as lightning_logs/version_0/checkpoints/last.ckpt")
    trust: Text | None = Field(description="code that the checkpoint may call beside what is known, such as my_package")


class Evaluate(Trained):
    groups = ("data",)
    name: Name | None = Field(description="of the folder in lightning_logs/ that the run's is made in; null: none")
    tta: Literal["flip"] | None = Field(description="flip: also average the probabilities of image and mirror image")
    seed: int = Field(
        ge=0, le=2**32 - 1, description="of the gallery's order random, and of the test where images come undivided"
    )
    data: Images
    gallery: Gallery
    errors: Errors
    trainer: Device


class Predict(Trained):
    images: Text = Field(
        description="a file, a folder with all below it, or a quoted pattern: * any name, ** any depth"
    )
    format: Literal["table", "json"] = Field(description="of what is written to standard output")
    sheet: int = Field(ge=0, le=100, description="draw at most this many of the images with their maps; 0: no sheet")
    output: Text = Field(description="the sheet, a .png file; an older one is replaced")


class Export(Trained):
    format: Literal["onnx", "torchscript", "exported_program"] = Field(description="of the file")
    output: Text | None = Field(description="the file; an older one is replaced; null: beside the checkpoint")


class Compare(Section):
    needs_torch = False
    positional = "logs"
    logs: list[Text] = Field(min_length=1, description="folders with runs in them, at any depth")
    format: Literal["table", "markdown", "csv", "json"] = Field(description="of what is written to standard output")
    plot: Text | None = Field(description="a picture of every run, a .png file; an older one is replaced; null: none")


COMMANDS: dict[str, type[Section]]
COMMANDS = {
    "train": Train,
    "lr_find": LrFind,
    "evaluate": Evaluate,
    "predict": Predict,
    "export": Export,
    "compare": Compare,
}
