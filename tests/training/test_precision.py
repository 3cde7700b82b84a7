"""Which precision `auto` means: what the device has, what a trial says, and what a run began with."""

import json
from pathlib import Path

import pytest
import torch

from cifar_resnet import build, evaluate, train
from cifar_resnet.cli.compose import compose
from cifar_resnet.inference.export import export
from cifar_resnet.inference.predict import predict
from cifar_resnet.training import precision

CPU = torch.device("cpu")
SMALL = ["data=digits", "data.train_size=100", "model.width=2", "trainer.accelerator=cpu"]
SMALL += ["trainer.max_epochs=2", "schedule.peak_epoch=1", "gallery.count=1"]
GIVEN = ["schedule.lr_min=0.01", "schedule.lr_max=0.1"]


def processor(patch: pytest.MonkeyPatch, instructions: list[str], gain: float) -> None:
    patch.setattr(precision, "bf16_instructions", lambda: instructions)
    patch.setattr(precision, "bf16_gain", lambda: gain)


@pytest.mark.parametrize(
    ("instructions", "gain", "chosen", "reason"),
    [
        ([], 9.0, "32-true", "this processor has no bf16 instructions"),
        (["avx512_bf16"], 1.8, "bf16-mixed", "1.8 times as fast as 32-true in a trial, with avx512_bf16"),
        (["amx_bf16", "avx512_bf16"], 1.02, "32-true", "bf16-mixed is 1.0 times as fast as 32-true in a trial"),
        (["bf16"], 0.5, "32-true", "bf16-mixed is 0.5 times as fast"),
    ],
)
def test_a_cpu_takes_bf16_where_it_has_it_and_is_faster(
    instructions: list[str], gain: float, chosen: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, instructions, gain)
    choice = precision.fastest_precision(CPU)
    assert choice.precision == chosen
    assert choice.reason.startswith(reason)


@pytest.mark.parametrize(("has_bf16", "chosen"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_a_gpu_takes_what_it_computes_in(has_bf16: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert precision.fastest_precision(torch.device("cuda")).precision == chosen
    assert precision.fastest_precision(torch.device("mps")).precision == "32-true"
    assert precision.mixed_precision(torch.device("cuda")).precision == "16-mixed"


@pytest.mark.parametrize(("gain", "says"), [(1.8, "needs a GPU"), (0.5, "trainer.precision=32-true is faster")])
def test_half_precision_on_a_cpu_tells_what_it_is(gain: float, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, ["avx512_bf16"], gain)
    choice = precision.mixed_precision(CPU)
    assert choice.precision == "bf16-mixed"
    assert choice.reason.startswith("in the place of 16-mixed, which needs a GPU")
    assert says in choice.reason


def test_the_trial_is_a_ratio_and_leaves_no_trace() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert 0.01 < precision.bf16_gain.__wrapped__() < 100
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_what_one_asks_for_is_taken() -> None:
    for asked in ("32-true", "64-true", "bf16-mixed"):
        assert build.choose_precision(compose("train", *SMALL, f"trainer.precision={asked}"), {}).precision == asked


def test_a_run_goes_on_in_the_precision_that_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, ["avx512_bf16"], 1.8)
    config = compose("train", *SMALL)
    assert build.choose_precision(config, {}).precision == "bf16-mixed"
    assert build.choose_precision(config, {"precision": "32-true"}).precision == "32-true"
    assert build.choose_precision(config, {"epoch": 3}).precision == "32-true"  # of a version that had no choice
    assert build.choose_precision(config, {"precision": "16-mixed"}).precision == "bf16-mixed"  # of a GPU


def test_processes_that_train_together_agree_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, ["avx512_bf16"], 0.5)
    for devices, chosen in ((1, "32-true"), (2, "bf16-mixed")):
        config = compose("train", *SMALL, f"trainer.devices={devices}", "trainer.strategy=ddp")
        assert build.choose_precision(config, {}).precision == chosen


def test_clipping_by_a_fused_optimizer_leaves_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, ["avx512_bf16"], 1.8)
    for typed, chosen in (([], "32-true"), (["optimizer.fused=false"], "bf16-mixed")):
        config = compose("train", *SMALL, "trainer.gradient_clip_val=1", *typed)
        assert build.choose_precision(config, {}).precision == chosen


def test_a_run_records_what_was_chosen(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(str(tmp_path))
    processor(monkeypatch, ["avx512_bf16"], 1.8)
    run = train(*SMALL, *GIVEN)
    assert run.summary["precision"] == "bf16-mixed"
    assert run.folder is not None
    assert torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["precision"] == "bf16-mixed"
    assert (
        "precision: bf16-mixed (1.8 times as fast as 32-true in a trial, with avx512_bf16)" in capsys.readouterr().out
    )


@pytest.mark.parametrize("asked", ["32-true", "bf16-mixed", "16-mixed"])
def test_all_that_a_run_does_works_in_each(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(*SMALL, "lr_search.num_training=30", f"trainer.precision={asked}")
    assert run.folder is not None
    gallery = json.loads((run.folder / "gallery.json").read_text())
    assert gallery["maps"] == {"method": "gradcam", "layer": "layer2"}
    ckpt = f"ckpt={run.folder}/checkpoints/last.ckpt"
    again = evaluate(ckpt, "data=digits", "trainer.accelerator=cpu", f"trainer.precision={asked}")
    assert again.accuracy == run.evaluation.accuracy
    assert again.calibration_error == pytest.approx(run.evaluation.calibration_error, abs=1e-6)
    export(compose("export", ckpt))  # which compares it with the checkpoint
    predict(compose("predict", ckpt, f"images={run.folder}/gallery.png"))
