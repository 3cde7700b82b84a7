"""The sections that the keys of the commands stand in: type, range and meaning of each key."""

from functools import partial
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cifar_resnet.cli.kinds import (
    BatchSize,
    ClassWeights,
    CompileMode,
    Count,
    Cutout,
    Devices,
    Flip,
    Folder,
    ImageSize,
    LastRate,
    Method,
    Precision,
    Rate,
    Share,
    Size,
    Text,
)
from cifar_resnet.errors import InputError

Maybe: Any = partial(Field, None)  # a key that some choices of a group do not have


class Section(BaseModel):
    """Keys that belong together; it takes no others, and does not change."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    groups: ClassVar[tuple[str, ...]] = ()
    needs_torch: ClassVar[bool] = True
    positional: ClassVar[str | None] = None  # the key that words without one are values of


class Call(Section, extra="allow"):
    """What is called; +KEY=VALUE gives it a further argument."""

    set_elsewhere: ClassVar[dict[str, str]] = {}
    target: str = Field(alias="_target_", pattern=r"^\w+(\.\w+)+$", description="the dotted name of what is called")

    @model_validator(mode="after")
    def _holds_arguments_alone(self) -> Self:
        for name in self.model_extra or ():
            if name.startswith("_") or name in self.set_elsewhere:
                raise InputError(f"{name} cannot be set here; {self.set_elsewhere.get(name, 'it is no argument')}")
        return self

    @property
    def call(self) -> dict[str, Any]:
        """The name and the arguments as plain values: ``{"_target_": ..., ...}``."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Network(Call):
    set_elsewhere = {"num_classes": "the data says how many there are"}
    width: int = Maybe(ge=1, le=1024, description="channels of the first stage; scales every other")
    celu: float | None = Maybe(gt=0, le=100, description="alpha of a CELU in the place of each ReLU; null: ReLU")
    ghost: Count | None = Maybe(description="images that batch norm takes together; null: those of a batch")
    norm_scale: bool = Maybe(description="learn the scale of each batch norm; false: it stays 1")
    whiten: bool = Maybe(description="begin with the principal components of the training images' 3×3 patches")


class Model(Network):
    name: Text = Maybe(description="of a network in its library, such as mobilenet_v3_small")
    pretrained: bool = Maybe(description="begin with its library's weights, which are fetched, instead of random ones")
    weights: Text | None = Maybe(description="a file of weights to begin with; null: as pretrained says")
    input_size: int | None = Maybe(ge=8, le=1024, description="side that images are scaled to; null: what it needs")

    @property
    def title(self) -> str:
        """What a person calls the network, such as resnet18 (timm)."""
        made_by = self.target.rpartition(".")[2].removeprefix("from_")
        return f"{self.name} ({made_by})" if self.name else made_by


class Optimizer(Call):
    set_elsewhere = {"lr": "the rate comes from schedule.lr_min and schedule.lr_max"}
    momentum: float = Maybe(ge=0, le=1, description="share of the last step that the next one keeps")
    nesterov: bool = Maybe(description="look ahead along the momentum")
    fused: bool = Maybe(description="one kernel a step; false where gradients are clipped in mixed precision")
    weight_decay: float = Maybe(ge=0, le=1, description="pull of the weights towards zero")


class Images(Section, extra="ignore"):
    source: Call = Maybe(description="what reads them")
    root: Text | None = Maybe(description="folder of the images")
    name: Text = Maybe(description="of a data set in torchvision, such as CIFAR100")
    csv: Text | None = Maybe(description="table of the images: columns path, label and perhaps split")
    test_share: float = Maybe(gt=0, lt=1, description="of each class, for the test where images come undivided")
    resize: bool = Maybe(description="scale images of other sizes, centre-cropped; false: refuse them")

    @property
    def title(self) -> str:
        """What a person calls the images: their folder, their table, their name in a library."""
        kind = self.source.target.rpartition(".")[2]
        named_by = {"Folder": "root", "Table": "csv", "Torchvision": "name"}.get(kind)
        return str(self.source.call[named_by]) if named_by else kind


class Data(Images, extra="forbid"):
    source: Call = Field(description="what reads them")
    image_size: ImageSize = Field(description="side in pixels that images are scaled to")
    batch_size: BatchSize | None = Field(description="images in a step, over all devices; null: by their number")
    num_workers: int | None = Field(ge=0, le=256, description="that augment; null: none on a CPU, up to 8 beside a GPU")
    padding: Literal["reflect", "mean"] = Field(description="what surrounds a training image before it is cropped")
    flip: Flip = Field(description="mirror half of the training images; alternating: each in every other epoch")
    cutout: Cutout | None = Field(description="side of the square cut out of training images; null: a quarter")
    val_size: Size = Field(description="training images held out for tuning; 0: train on all")
    train_size: Count | None = Field(description="train on this many only, class proportions kept; null: all")
    test_statistics: Literal["train", "test"] = Field(description="whose mean and deviation normalize test images")


class Schedule(Section):
    peak_epoch: float = Field(ge=0, le=10_000, description="up to lr_max until its end, counted from 1; then down")
    lr_min: Rate | None = Field(description="rate of the first step, and of the last; null: found by the search")
    lr_max: Rate | None = Field(description="rate of the peak; null: found by the search")
    lr_end: LastRate | None = Field(description="rate of the last step, 0 or more; null: lr_min")
    flat_epochs: float = Field(ge=0, le=10_000, description="epochs at the end that keep the rate of the last step")
    bias_factor: float = Field(ge=1e-3, le=1e3, description="rate of biases / all others; divides their weight decay")


class LrSearch(Section):
    num_training: int = Field(ge=20, le=100_000, description="optimizer steps of a sweep")
    repeats: int = Field(ge=1, le=100, description="sweeps to average, each with weights and an order of its own")
    lowest: Rate = Field(description="rate at which a sweep begins")
    highest: Rate = Field(description="rate at which a sweep ends")
    lr_max_factor: float = Field(
        ge=1e-3, le=1e3, description="LRMAX over the rate at half of the descent, over the root of the images in a step"
    )


class Averaging(Section):
    decay: float | None = Field(gt=0, lt=1, description="share of the mean weights that a step keeps; null: no mean")
    every: int = Field(ge=1, le=10_000, description="steps from one update of the mean to the next")


class Checkpoint(Section):
    minutes: float = Field(
        gt=0, le=100_000, description="from one within an epoch to the next; each epoch ends with one"
    )


class Classifier(Section):
    temperature: float = Field(ge=1e-3, le=1e3, description="softmax temperature: logits = network outputs / it")
    label_smoothing: float = Field(ge=0, le=1, description="share of the target that is spread over all classes")
    class_weights: ClassWeights | None = Field(
        description="balanced: images of rare classes count more; null: all alike"
    )
    compile: bool = Field(description="torch.compile the network: a minute at the start, no faster steps on a CPU")
    compile_mode: CompileMode = Field(description="what torch.compile tries")


class Gallery(Section):
    count: int = Field(ge=0, le=100, description="how many at most; 0: no gallery")
    order: Literal["varied", "confident", "loss", "first", "random"] = Field(
        description="varied: the most probable error of each confused pair, then the next of each"
    )
    layer: Text | None = Field(description="layer to explain, such as layer3; null: the last stage with an 8×8 map")
    method: Method = Field(description="how pytorch-grad-cam explains")


class Errors(Section):
    limit: int = Field(ge=0, le=50_000, description="how many errors.html has at most, the most probable; 0: no page")


class Device(Section):
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = Field(description="kind of device")
    devices: Devices = Field(description="how many, or a list of which, such as [0,1]")
    precision: Precision = Field(description="of what is computed; auto: the fastest here that loses no accuracy")
    deterministic: bool | Literal["warn"] | None = Field(description="true: the same result again, on a GPU too")
    enable_progress_bar: bool = Field(description="in a terminal")
    default_root_dir: Folder = Field(description="lightning_logs/ is made in it")


class Trainer(Device):
    strategy: Text = Field(description="how devices work together, such as ddp")
    num_nodes: int = Field(ge=1, le=10_000, description="machines that have the devices; a launcher starts each")
    sync_batchnorm: bool = Field(description="batch norm over the images of all devices instead of each one's")
    max_epochs: int = Field(ge=1, le=10_000, description="epochs of the whole schedule")
    accumulate_grad_batches: int = Field(ge=1, le=10_000, description="batches in an optimizer step")
    gradient_clip_val: float | None = Field(ge=0, le=1e6, description="null: gradients as they are")
    gradient_clip_algorithm: Literal["norm", "value"] | None = Field(description="what is clipped; null: the norm")
    limit_train_batches: Count | Share | None = Field(description="number or share of an epoch's; null: all")
    limit_val_batches: Size | Share | None = Field(description="number or share of those watched; null: all")
    limit_test_batches: Count | Share | None = Field(description="number or share of the test's; null: all")
    check_val_every_n_epoch: int = Field(ge=1, le=10_000, description="epochs from one evaluation to the next")
    log_every_n_steps: int = Field(ge=1, le=1_000_000, description="steps from one logged step to the next")
    fast_dev_run: bool | Count = Field(description="true: a batch, or a few, of everything, to see whether it runs")
