"""The Lightning module: raw pixels → normalize → network → loss and metrics; optimizer and schedule."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from cifar_resnet.training.named import make
from cifar_resnet.training.one_cycle import one_cycle

if TYPE_CHECKING:  # who only predicts or exports need not wait for albumentations
    from cifar_resnet.data.batches import Batch


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Return what an image of each class counts in a loss in which all classes have one share.

    Of n images, n_c of them of class c, an image of c counts n / (k n_c), where k classes have images: one on average.
    A class without images, which no loss meets, counts 0 (scikit-learn's "balanced", after King & Zeng 2001,
    Political Analysis 9, section 4.2).

    Args:
        counts: images of each class, by label; at least one of them is above 0.
    """
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]


class ImageClassifier(LightningModule):
    """A network with everything that a checkpoint needs to be used alone: statistics, class names, temperature.

    All arguments are plain values, and are saved with the weights, so
    ``ImageClassifier.load_from_checkpoint(path)`` needs nothing else.

    Args:
        model: ``{"_target_": dotted name, ...}`` of a callable that takes ``num_classes`` and returns the network.
        classes: the class names, by label.
        mean, std: of the training images' channels, ``[3]`` in 0 to 1, by which images are normalized.
        test_mean, test_std: take their place in evaluation mode.
        optimizer: ``{"_target_": dotted name, ...}`` of a torch optimizer, without its rate.
        lr_min, lr_max: rate of the first step, and of the peak; None as long as they are not known.
        lr_end: rate of the last step; None: ``lr_min``.
        flat_epochs: epochs at the end that keep the rate of the last step.
        bias_factor: the rate of biases as a multiple of all others', by which their weight decay is divided.
        peak_epoch: epoch at whose end the rate is ``lr_max``, counted from 1.
        max_epochs: epochs of the whole schedule.
        temperature: the softmax temperature: the network's outputs are divided by it. With PyTorch's initialisation
            the max-pooled features make the first outputs so large that SGD diverges at useful rates; 8 is the
            reciprocal of the factor 0.125 in Page's ResNet-9 (github.com/davidcpage/cifar10-fast).
        label_smoothing: of the training loss (Szegedy et al. 2015, arXiv 1512.00567, section 7).
        class_weights: what an image of each class counts in the training loss, by label; None: all count alike.
        compile, compile_mode: whether ``torch.compile`` compiles the network, and its ``mode``.
        image_size: side of the images in pixels, for networks that take an argument of this name.
        validation_name: under which the validation loop logs, ``val`` or ``test``.
        flip: whether it is trained on mirror images too, so that they have the class of the image.
        patch_covariance: of the normalized training images, ``[27, 27]``, for networks that take an argument of this
            name; None where it was not derived.
    """

    mean: Tensor
    std: Tensor
    test_mean: Tensor
    test_std: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        model: Mapping[str, Any],
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        test_mean: Sequence[float],
        test_std: Sequence[float],
        optimizer: Mapping[str, Any],
        lr_min: float | None = None,
        lr_max: float | None = None,
        peak_epoch: float = 5,
        max_epochs: int = 24,
        lr_end: float | None = None,
        flat_epochs: float = 0.0,
        bias_factor: float = 1.0,
        temperature: float = 8.0,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        compile: bool = False,
        compile_mode: str = "default",
        image_size: int = 32,
        validation_name: str = "test",
        flip: bool = False,
        patch_covariance: Sequence[Sequence[float]] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.classes = tuple(classes)
        offered = {"image_size": image_size, "patch_covariance": patch_covariance}
        self.network = make(nn.Module, model, "model", offered=offered, num_classes=len(classes))
        self.network.to(memory_format=torch.channels_last)
        if compile:
            self.network.compile(mode=compile_mode)
        for name, values in (("mean", mean), ("std", std), ("test_mean", test_mean), ("test_std", test_std)):
            self.register_buffer(name, torch.tensor(values))
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)  # the hyperparameters hold them
        accuracy = MulticlassAccuracy(len(classes), average="micro", validate_args=False)
        metrics = MetricCollection(
            {"loss": MeanMetric(nan_strategy="disable"), "accuracy": accuracy}, compute_groups=False
        )
        self.train_metrics, self.val_metrics, self.test_metrics = metrics.clone(), metrics.clone(), metrics.clone()
        self.example_input_array: Tensor = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)

    def normalize(self, images: Tensor) -> Tensor:
        """Map uint8 images ``[N, H, W, 3]`` to floats ``[N, 3, H, W]`` of mean 0 and deviation 1, channels last."""
        mean, std = (self.mean, self.std) if self.training else (self.test_mean, self.test_std)
        # On a CPU, broadcasting three values over the last dimension takes three times as long as whole images do.
        shift, scale = ((255 * channels).expand(images.shape[1:]).contiguous() for channels in (mean, std))
        pixels = (images.to(mean.dtype) - shift) / scale
        return pixels.permute(0, 3, 1, 2)  # NHWC memory seen as NCHW is channels_last: nothing is copied

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images ``[N, S, S, 3]``, RGB, to logits ``[N, classes]``; their softmax is the probability."""
        return self.network(self.normalize(images)) / self.hparams["temperature"]

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss, a scalar: mean cross-entropy of logits ``[N, classes]`` and labels ``[N]``.

        Class weights multiply the loss of each image. PyTorch's own ``weight`` would divide by the sum of those in the
        batch, and so make an image count by what it happens to be batched with.
        """
        smoothing = self.hparams["label_smoothing"]
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return (self.class_weights[labels] * losses).mean()

    def training_step(self, batch: "Batch", batch_idx: int) -> Tensor:
        """Return the training loss of a batch."""
        images, labels = batch
        logits = self(images)
        loss = self.criterion(logits, labels)
        self._update(self.train_metrics, loss, logits, labels)  # batches of one size: their mean is that of the images
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
            self.log_dict({"step/loss": loss.detach(), "step/accuracy": accuracy}, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log loss and accuracy of the epoch, as they were while its images were trained on."""
        self._log_epoch("train", self.train_metrics)

    def on_validation_epoch_start(self) -> None:
        """Evaluate with the batch norm of the first device."""
        self._take_buffers_of_first_device()

    def on_test_start(self) -> None:
        """Evaluate with the batch norm of the first device, which a checkpoint holds."""
        self._take_buffers_of_first_device()

    def _take_buffers_of_first_device(self) -> None:
        """After a step the devices have seen images of their own, but they share one evaluation."""
        if self.trainer.world_size > 1:
            own = dict(self.network.named_buffers())
            first = self.trainer.strategy.broadcast({name: buffer.cpu() for name, buffer in own.items()})
            for name, buffer in own.items():
                buffer.copy_(first[name])

    def validation_step(self, batch: "Batch", batch_idx: int) -> None:
        """Count a batch of the validation images."""
        self._evaluate(self.val_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy of the validation images."""
        self._log_epoch(self.hparams["validation_name"], self.val_metrics)

    def test_step(self, batch: "Batch", batch_idx: int) -> Tensor:
        """Return the logits of a batch of test images."""
        return self._evaluate(self.test_metrics, batch)

    def on_test_epoch_end(self) -> None:
        """Log loss and accuracy of the test images."""
        self._log_epoch("test", self.test_metrics)

    def _evaluate(self, metrics: MetricCollection, batch: "Batch") -> Tensor:
        images, labels = batch
        logits = self(images)
        self._update(metrics, F.cross_entropy(logits, labels, reduction="none"), logits, labels)
        return logits

    @staticmethod
    def _update(metrics: MetricCollection, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Accumulate on the device; read once an epoch."""
        metrics["loss"].update(losses.detach())  # a weight would be a copy to the device, which the host waits for
        metrics["accuracy"].update(logits.detach().argmax(dim=1), labels)

    def _log_epoch(self, name: str, metrics: MetricCollection) -> None:
        self.log_dict({f"{name}/{key}": value for key, value in metrics.compute().items()})
        metrics.reset()

    def make_optimizer(self, lr: float) -> Optimizer:
        """Return a new optimizer over the network's parameters with the rate ``lr``, biases in a group of their own.

        They are where ``bias_factor`` is not 1. What weight decay takes off in a step is the same share of all.
        """
        parameters, factor = self.network.parameters(), self.hparams["bias_factor"]
        if factor == 1:
            return make(Optimizer, self.hparams["optimizer"], "optimizer", parameters, lr=lr)
        named = [(name.endswith("bias"), parameter) for name, parameter in self.network.named_parameters()]
        others, biases = ([parameter for is_bias, parameter in named if is_bias is kind] for kind in (False, True))
        groups = [{"params": others}, {"params": biases, "lr": factor * lr}]
        optimizer = make(Optimizer, self.hparams["optimizer"], "optimizer", groups, lr=lr)
        of_biases = optimizer.param_groups[1]
        if "weight_decay" in of_biases:
            of_biases["weight_decay"] /= factor
        return optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and the One Cycle schedule, stepped with it."""
        hparams = self.hparams
        optimizer = self.make_optimizer(hparams["lr_max"])
        total_steps = int(self.trainer.estimated_stepping_batches)
        peak, flat = (hparams[name] / hparams["max_epochs"] for name in ("peak_epoch", "flat_epochs"))
        scheduler = one_cycle(
            optimizer, hparams["lr_min"], hparams["lr_max"], peak, total_steps, hparams["lr_end"], flat
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "step/learning_rate"},
        }

    def setup(self, stage: str) -> None:
        """Take the bounds of the first device, which alone has searched for them."""
        if stage == "fit":
            names = ("lr_min", "lr_max")
            bounds = self.trainer.strategy.broadcast([self.hparams[name] for name in names])
            self.hparams.update(zip(names, bounds, strict=True))
