"""The history has an entry an epoch, and tells evaluated epochs from others."""

from pathlib import Path

import pytest
from conftest import make_classifier, make_data, make_trainer

from cifar_resnet.callbacks.history import Epoch, History, draw_curves
from cifar_resnet.errors import RunError


def test_an_entry_an_epoch_with_its_own_evaluation_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, history = make_data(), History()
    make_trainer(tmp_path, callbacks=[history], check_val_every_n_epoch=2).fit(make_classifier(data), datamodule=data)
    assert [epoch.number for epoch in history.epochs] == [1, 2, 3]
    assert [epoch.val_accuracy is not None for epoch in history.epochs] == [False, True, False]
    assert [line.count("test loss") for line in capsys.readouterr().out.splitlines() if "epoch" in line] == [0, 1, 0]


def test_images_and_seconds_are_those_of_training(tmp_path: Path) -> None:
    data, history = make_data(), History()
    make_trainer(tmp_path, callbacks=[history]).fit(make_classifier(data), datamodule=data)
    assert history.images == 3 * 48
    assert 0 < sum(epoch.seconds for epoch in history.epochs) == pytest.approx(history.seconds, rel=0.01)


def test_training_that_diverges_is_stopped(tmp_path: Path) -> None:
    data = make_data()
    classifier = make_classifier(data, lr_min=1e30, lr_max=1e35)
    with pytest.raises(RunError, match=r"training diverged at step 3 \(epoch 1\), .*lower schedule.lr_max"):
        make_trainer(tmp_path, callbacks=[History()]).fit(classifier, datamodule=data)


@pytest.mark.parametrize(("losses", "scale"), [((72.0, 0.3), "log"), ((1.8, None), "linear"), ((0.5, 0.0), "linear")])
def test_a_first_loss_far_above_the_others_does_not_hide_them(losses: tuple[float, float | None], scale: str) -> None:
    epochs = [Epoch(number, 0.9, 0.5, loss, 0.5, seconds=1.0) for number, loss in enumerate(losses, start=1)]
    assert draw_curves(epochs, "test").axes[0].get_yscale() == scale
