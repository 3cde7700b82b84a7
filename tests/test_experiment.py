"""The main job end to end, small: what a run leaves behind, and that its figures are those of the run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.datasets import CIFAR10

from cifar_resnet import build, evaluate, experiment, find_lr, train
from cifar_resnet.cli import command
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.overrides import CONFIGS
from cifar_resnet.cli.schema import Train
from cifar_resnet.data.sources import Digits
from cifar_resnet.errors import InputError, RunError
from cifar_resnet.inference.export import export
from cifar_resnet.inference.predict import predict
from cifar_resnet.lr.search import Probe
from cifar_resnet.results.compare import compare, compare_folders
from cifar_resnet.training.checkpoint import load_classifier
from cifar_resnet.training.classifier import ImageClassifier

SCRIPTS = CONFIGS.parent / "scripts"
SMALL = [
    "data=digits",
    "data.train_size=200",
    "model.width=2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "schedule.peak_epoch=1",
    "lr_search.num_training=50",
    "gallery.count=1",
]
GIVEN = ["schedule.lr_min=0.01", "schedule.lr_max=0.3"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def events(folder: str) -> EventAccumulator:
    """Everything that the event files of a run hold."""
    return EventAccumulator(folder, size_guidance={"scalars": 0, "images": 0, "graph": 1}).Reload()


def test_a_run_leaves_what_the_readme_promises(tmp_path: Path) -> None:
    summary = train(*SMALL).summary
    run = tmp_path / "lightning_logs" / "version_0"
    left = {path.name for path in run.iterdir() if not path.name.startswith("events")}
    assert left >= {
        "batch.png",
        "config.yaml",
        "lr_find.json",
        "lr_find.png",
        "checkpoints",
        "gallery.json",
        "gallery.png",
        "summary.json",
    }
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert json.loads((run / "summary.json").read_text()) == summary
    assert summary.keys() >= {
        "test_accuracy", "train_accuracy", "epochs", "train_seconds", "images_per_second", "lr_min", "lr_max",
        "parameters", "seed", "misclassified", "device", "versions", "batch_size", "balanced_accuracy", "macro_f1",
        "remarks",
    }  # fmt: skip
    assert yaml.safe_load((run / "config.yaml").read_text())["schedule"]["peak_epoch"] == 1

    test = Digits().test()
    classifier = ImageClassifier.load_from_checkpoint(run / "checkpoints" / "last.ckpt", weights_only=True).eval()
    with torch.no_grad():
        right = classifier(torch.from_numpy(test.images)).argmax(1).numpy() == test.labels
    assert summary["test_accuracy"] == pytest.approx(right.mean())
    assert summary["misclassified"] == (~right).sum()
    assert summary["epochs"] == 3
    found = json.loads((run / "lr_find.json").read_text())
    assert (found["lr_min"], found["lr_max"]) == (summary["lr_min"], summary["lr_max"])


def test_tensorboard_has_scalars_pictures_graph_and_hparams() -> None:
    summary = train(*SMALL, "gallery.count=10").summary
    seen = events("lightning_logs/version_0")
    tags = seen.Tags()
    steps = {"step/loss", "step/accuracy", "step/learning_rate", "speed/images_per_second"}
    assert set(tags["scalars"]) == steps | {"result/test_accuracy", "result/train_seconds"}
    pictures = {f"pictures/{name}" for name in ("batch", "lr_search", "curves", "confusion_matrix", "reliability")}
    assert set(tags["images"]) == pictures | {f"gallery/{place:02}" for place in range(1, 11)}
    assert tags["graph"]
    assert len(seen.Scalars("speed/images_per_second")) == 3
    assert len(seen.Scalars("step/learning_rate")) == 9  # 3 epochs of 200 images in batches of 64
    rates = [event.value for event in seen.Scalars("step/learning_rate")]
    assert max(rates) == pytest.approx(summary["lr_max"])
    assert rates.index(max(rates)) == 2  # the last step of epoch 1
    assert rates[-1] == pytest.approx(summary["lr_min"])


def test_tensorboard_shows_training_and_test_in_one_chart_and_each_epoch_once() -> None:
    summary = train(*SMALL, *GIVEN).summary
    for part in ("train", "test"):
        seen = events(f"lightning_logs/version_0/{part}")
        assert set(seen.Tags()["scalars"]) == {"epoch/loss", "epoch/accuracy"}
        accuracy = seen.Scalars("epoch/accuracy")
        assert [event.step for event in accuracy] == [2, 5, 8]  # of the last of an epoch's three, counted from 0
        assert accuracy[-1].value == pytest.approx(summary[f"{part}_accuracy"])


def test_tensorboard_tells_configuration_layers_result_and_ten_hyperparameters() -> None:
    summary = train(*SMALL, *GIVEN).summary
    run = Path("lightning_logs/version_0")
    texts = {}
    for tag in events(str(run)).Tags()["tensors"]:
        texts[tag.partition("/")[0]] = events(str(run)).Tensors(tag)[-1].tensor_proto.string_val[0].decode()
    assert yaml.safe_load(texts["configuration"].strip("`\n")) == yaml.safe_load((run / "config.yaml").read_text())
    assert f"| network | CustomResNet | 10 | {summary['parameters']} |" in texts["layers"]
    assert f"| test accuracy | {summary['test_accuracy']:.4g} |" in texts["result"]
    kept = yaml.safe_load((run / "hparams.yaml").read_text())
    assert len(kept) == 10
    assert kept == {key: summary[key] for key in kept}


def test_small_and_lopsided_data_is_told_weighed_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(92):
        kind, part = "night" if number % 23 == 0 else "day", "test" if number > 68 else "train"
        (tmp_path / part / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 if kind == "night" else 200,) * 3).save(tmp_path / part / kind / f"{number}.png")
    words = ["data=folder", f"data.root={tmp_path}", "model.width=2", "trainer.accelerator=cpu", "trainer.max_epochs=2"]
    words += ["schedule.peak_epoch=1", "gallery.count=0", *GIVEN]
    run = train(*words, "data.batch_size=512")
    printed = capsys.readouterr().out
    assert "data: 69 training, 23 test images, 2 classes of 3 (night) to 66 (day) images, batches of 69" in printed
    assert "note: 1 step an epoch" in printed
    assert "note: day has 22 times the images of night: classifier.class_weights=balanced" in printed
    assert "balanced accuracy" in printed
    assert (run.summary["batch_size"], run.classifier.hparams["class_weights"]) == (69, None)
    for remark in run.summary["remarks"]:
        assert f"note: {remark}" in printed
    weighted = train(*words, "classifier.class_weights=balanced")
    assert "times the images" not in capsys.readouterr().out
    assert weighted.summary["batch_size"] == 3
    assert weighted.classifier.hparams["class_weights"] == pytest.approx([69 / 132, 69 / 6])
    assert weighted.folder is not None
    assert load_classifier(f"{weighted.folder}/checkpoints/last.ckpt").classes == ("day", "night")


def test_given_bounds_are_used_as_they_are() -> None:
    summary = train(*SMALL, *GIVEN).summary
    assert (summary["lr_min"], summary["lr_max"]) == (0.01, 0.3)
    assert not Path("lightning_logs/version_0/lr_find.json").exists()


def weights(version: int) -> dict[str, torch.Tensor]:
    path = f"lightning_logs/version_{version}/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def test_found_and_given_bounds_train_the_same_to_the_bit() -> None:
    found = train(*SMALL).summary
    bounds = [f"schedule.{name}={found[name]!r}" for name in ("lr_min", "lr_max")]
    train(*SMALL, *bounds)
    first, second = weights(0), weights(1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resume_takes_the_bounds_of_the_checkpoint_and_refuses_another_schedule() -> None:
    found = train(*SMALL).summary
    Path("lightning_logs/version_0/summary.json").unlink()  # as if it had been interrupted
    resume = "ckpt_path=lightning_logs/version_0/checkpoints/last.ckpt"
    again = train(*SMALL, resume).summary
    assert (again["lr_min"], again["lr_max"]) == (found["lr_min"], found["lr_max"])
    for override, message in (
        ("trainer.max_epochs=4", "max_epochs=3, not 4"),
        ("schedule.lr_max=9", r"schedule.lr_max=\S+, not 9"),
    ):
        with pytest.raises(InputError, match=message):
            train(*SMALL, resume, override)
    assert os.listdir("lightning_logs") == ["version_0"]


def test_validation_split_is_watched_and_chooses_the_best_checkpoint() -> None:
    train(*SMALL, *GIVEN, "data.val_size=50")
    run = Path("lightning_logs/version_0")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert {part: len(events(str(run / part)).Scalars("epoch/accuracy")) for part in ("train", "val", "test")} == {
        "train": 3, "val": 3, "test": 1,
    }  # fmt: skip


def test_fast_dev_run_tries_everything_in_a_few_steps_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[float] = []
    record = Probe.on_before_optimizer_step
    monkeypatch.setattr(Probe, "on_before_optimizer_step", lambda self, at: (steps.append(0), record(self, at))[1])
    result = train(*SMALL, "trainer.fast_dev_run=true")
    assert f"{len(steps)} steps tried, too few for bounds" in capsys.readouterr().out
    assert 0 < len(steps) < 10
    half_given = train(*SMALL, "trainer.fast_dev_run=true", "schedule.lr_max=0.3")
    assert (half_given.lr_min, half_given.lr_max) == (pytest.approx(0.03), 0.3)
    assert result.folder is None
    assert result.lr_min < result.lr_max
    assert list(tmp_path.iterdir()) == []


def test_the_search_runs_on_the_trainers_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no second GPU here: what is asked for is seen, and the search goes on without."""
    asked: list[object] = []

    def searched(*_: object, trainer_options: dict[str, object], **__: object) -> None:
        asked.append(trainer_options["devices"])
        raise InputError("seen")

    config = compose("train", *SMALL)
    build.prepare(config.seed)
    data = experiment.read_images(build.build_data(config, 1))
    classifier = build.build_classifier(config, data)
    monkeypatch.setattr(experiment, "search", searched)
    for device in (torch.device("cuda", 1), torch.device("cpu")):
        trainer = SimpleNamespace(precision="32-true", strategy=SimpleNamespace(root_device=device))
        with pytest.raises(InputError, match="seen"):
            experiment.find_bounds(config, classifier, data, trainer)  # type: ignore[arg-type]
    assert asked == [[1], 1]


def test_a_checkpoint_of_an_earlier_version_is_evaluated(tmp_path: Path) -> None:
    """Before, checkpoints had no sum of their contents, the name of the watched part under another key, and no flip."""
    run = train(*SMALL, *GIVEN)
    assert run.folder is not None
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["sha256"]
    parameters = checkpoint["hyper_parameters"]
    parameters["watched"] = parameters.pop("validation_name")
    del parameters["flip"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    evaluation = evaluate("ckpt=old.ckpt", "data=digits", "trainer.accelerator=cpu", "gallery.count=0")
    assert evaluation.accuracy.value == run.accuracy
    again = train(*SMALL, *GIVEN, "ckpt_path=old.ckpt")
    assert again.accuracy == run.accuracy


def test_lr_find_writes_its_record_and_says_how_to_use_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_lr(*SMALL)
    run = Path("lightning_logs/version_0")
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "lr_find.json", "lr_find.png"}
    record: dict[str, Any] = json.loads((run / "lr_find.json").read_text())
    assert len(record["rates"]) == len(record["losses"]) == len(record["smoothed"]) > 20
    assert (record["seed"], record["batch_size"], record["precision"]) == (0, 64, "32-true")
    assert record["optimizer"]["momentum"] == 0.9
    assert record["verdict"] == found.bounds.verdict
    assert record["lr_min"] < record["middle"] < record["lr_max"]
    assert record["sweeps"][0] == pytest.approx(found.sweeps[0])
    bounds = f"schedule.lr_min={found.bounds.lr_min:g} schedule.lr_max={found.bounds.lr_max:g}"
    assert f"python scripts/train.py, and {bounds}" in capsys.readouterr().out


def test_debug_does_everything_once_in_a_few_steps(tmp_path: Path) -> None:
    summary = train("data=digits", "experiment=debug", "model.width=2", "trainer.accelerator=cpu").summary
    assert summary["epochs"] == 2
    left = {path.name for path in (tmp_path / "lightning_logs/version_0").iterdir()}
    assert left >= {"lr_find.json", "curves.png", "gallery.png", "errors.html", "report.html", "summary.json"}


def test_overfit_learns_a_batch_by_heart() -> None:
    words = ["data=digits", "experiment=overfit", "model.width=4", "trainer.accelerator=cpu", "gallery.count=0"]
    assert train(*words, "errors.limit=0", "trainer.enable_progress_bar=false").summary["train_accuracy"] == 1


def test_search_that_finds_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the loss never fell"):
        train(*SMALL, "lr_search.lowest=1e-9", "lr_search.highest=1e-8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "override", ["model=resnet18", "optimizer=adamw", "optimizer=muon", "classifier.label_smoothing=0.1"]
)
def test_the_groups_can_be_exchanged(override: str) -> None:
    summary = train(override, *SMALL, "schedule.lr_min=0.001", "schedule.lr_max=0.01").summary
    assert (summary["epochs"], summary["lr_max"]) == (3, 0.01)


def started(folder: Path, *typed: str) -> str:
    """What a run of two processes prints."""
    exactly = ["trainer.devices=2", "trainer.precision=32-true", "trainer.max_epochs=2"]
    done = subprocess.run(
        [sys.executable, *typed, *SMALL, *exactly], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_shared(run: Path, seed: int) -> None:
    """Whether two devices took as many steps as one, with the bounds of one search, and tested each image once."""
    summary = json.loads((run / "summary.json").read_text())
    rates = [event.value for event in events(str(run)).Scalars("step/learning_rate")]
    assert summary["seed"] == seed
    assert len(rates) == 6
    assert max(rates) == pytest.approx(summary["lr_max"])
    exactly = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.default_root_dir=alone"]
    evaluate(f"ckpt={run / 'checkpoints/last.ckpt'}", *exactly)
    (again,) = Path("alone").rglob("evaluation.json")
    alone, shared = (json.loads(file.read_text()) for file in (again, run / "evaluation.json"))
    assert shared["images"] == 899  # which two do not divide
    assert shared["confusion"] == alone["confusion"]
    one, other = ((file.parent / "errors.csv").read_text().splitlines() for file in (again, run / "evaluation.json"))
    assert [line.split(",")[1] for line in one] == [line.split(",")[1] for line in other]


def test_two_devices_of_torchrun_share_the_batch_and_the_bounds(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert started(tmp_path, *launcher, str(SCRIPTS / "train.py")).count("LR search") == 1
    assert_shared(tmp_path / "lightning_logs/version_0", seed=0)


def test_so_do_those_that_lightning_starts_in_each_job_of_a_sweep(tmp_path: Path) -> None:
    assert started(tmp_path, str(SCRIPTS / "train.py"), "-m", "seed=0,1").count("LR search") == 2
    first, second = sorted(file.parent for file in tmp_path.glob("lightning_logs/*/*/summary.json"))
    assert json.loads((first / "summary.json").read_text())["seed"] == 0
    assert_shared(second, seed=1)


def test_several_runs_are_named_compared_and_outlive_one_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(config: Train) -> object:
        if (config.seed, config.model.width) == (1, 4):
            raise RunError("it fails by design")
        return experiment.train(config)

    typed = ["-m", "model.width=2,4", "seed=0,1,2", *(word for word in SMALL if "width" not in word), *GIVEN]
    monkeypatch.setattr(sys, "argv", ["train.py", *typed, "trainer.max_epochs=2", "errors.limit=0"])
    with pytest.raises(SystemExit) as stopped:
        command.run("train", job, afterwards=compare_folders)
    assert str(stopped.value.code).splitlines()[1:] == ["run 5 of 6: model.width=4 seed=1: it fails by design"]
    expected = {f"width={width},seed={seed}" for width in (2, 4) for seed in range(3)} - {"width=4,seed=1"}
    assert {path.name for path in Path("lightning_logs").iterdir()} == expected
    printed = capsys.readouterr().out
    groups = compare(compose("compare", "format=json"))
    assert [(group.name, group.runs) for group in groups] == [("width=2", 3), ("width=4", 2)]
    assert all(f"{group.mean:.2%} ± {100 * (group.deviation or 0):.2f}" in printed for group in groups)
    assert "width=4 less width=2: " in printed


PATCH = """
from torchvision.datasets import CIFAR10
for name, value in {values!r}.items():
    setattr(CIFAR10, name, value)
"""


@pytest.mark.usefixtures("official")
def test_the_literal_command_of_the_readme(tmp_path: Path) -> None:
    """Only the archive that it downloads is replaced: 24 epochs at width 64 on 10 images."""
    site, home = tmp_path / "site", tmp_path / "home"
    site.mkdir()
    home.mkdir()
    values = {name: getattr(CIFAR10, name) for name in ("url", "tgz_md5", "train_list", "test_list", "meta")}
    (site / "sitecustomize.py").write_text(PATCH.format(values=values))
    command = [sys.executable, str(SCRIPTS / "train.py"), "trainer.devices=1", "trainer.precision=16-mixed"]
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert (home / "data" / CIFAR10.base_folder).is_dir()
    summary = json.loads((home / "lightning_logs/version_0/summary.json").read_text())
    assert (summary["epochs"], summary["parameters"]) == (24, 6_573_130)
    assert "tensorboard --logdir lightning_logs" in done.stdout
    assert "bf16-mixed" in done.stdout or torch.cuda.is_available()
    assert "Traceback" not in done.stderr


def test_a_run_on_images_of_another_size_is_evaluated_predicted_and_exported_at_it(tmp_path: Path) -> None:
    for number in range(40):
        kind, part = ("bright", "dark")[number % 2], ("train", "test")[number // 30]
        (tmp_path / part / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40), (250 - 200 * (number % 2),) * 3).save(tmp_path / part / kind / f"{number}.png")
    words = ["data=folder", f"data.root={tmp_path}", "data.image_size=16", "model.width=2", "trainer.accelerator=cpu"]
    run = train(*words, *GIVEN, "trainer.max_epochs=2", "schedule.peak_epoch=1")
    assert run.classifier.example_input_array.shape == (1, 16, 16, 3)
    ckpt = f"ckpt={run.folder}/checkpoints/last.ckpt"
    assert evaluate(ckpt).accuracy == run.evaluation.accuracy
    export(compose("export", ckpt))
    assert predict(compose("predict", ckpt, f"images={tmp_path}/test")) == 0


def test_evaluation_remembers_what_was_trained_on(tmp_path: Path) -> None:
    run = train(*SMALL, *GIVEN)
    ckpt = tmp_path / "elsewhere.ckpt"
    (tmp_path / f"{run.folder}/checkpoints/last.ckpt").rename(ckpt)
    assert evaluate(f"ckpt={ckpt}").accuracy == run.evaluation.accuracy
    assert yaml.safe_load(Path("lightning_logs/version_1/config.yaml").read_text())["data"]["source"] == {
        "_target_": "cifar_resnet.data.sources.Digits"
    }


def rewrite(file: Path, **changes: Any) -> None:
    """Change a checkpoint as somebody else might."""
    contents = torch.load(file, weights_only=True)
    contents.pop("sha256", None)
    torch.save(contents | changes, file)


def test_evaluation_follows_images_that_were_moved(tmp_path: Path) -> None:
    for number in range(40):
        kind, part = ("bright", "dark")[number % 2], ("train", "test")[number // 30]
        (tmp_path / "photos" / part / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (250 - 200 * (number % 2),) * 3).save(f"photos/{part}/{kind}/{number}.png")
    words = ["data=folder", "data.root=photos", "model.width=2", "trainer.accelerator=cpu"]
    run = train(*words, *GIVEN, "trainer.max_epochs=2", "schedule.peak_epoch=1")
    ckpt = f"ckpt={run.folder}/checkpoints/last.ckpt"
    Path("photos").rename("pictures")
    with pytest.raises(InputError, match="photos: no such folder"):
        evaluate(ckpt)
    assert evaluate(ckpt, "data.root=pictures").accuracy == run.evaluation.accuracy


def test_nothing_is_fetched_for_the_sake_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(*SMALL, *GIVEN)
    file = Path(f"{run.folder}/checkpoints/last.ckpt")
    rewrite(file, source={"_target_": "cifar_resnet.data.cifar10.Cifar10", "root": "empty"})
    monkeypatch.setattr("cifar_resnet.data.cifar10.download_url", lambda *_: pytest.fail("fetched"))
    with pytest.raises(InputError, match=r"was trained on images that are not here .*give data=… to fetch them"):
        evaluate(f"ckpt={file}")
    assert not Path("empty").exists()


def test_a_strangers_checkpoint_reads_from_known_sources_alone(tmp_path: Path) -> None:
    run = train(*SMALL, *GIVEN)
    file = tmp_path / f"{run.folder}/checkpoints/last.ckpt"
    for source, answer in (
        ({"_target_": "os.system", "command": "touch hacked"}, "wants to call os.system, which is not known here"),
        ({"_target_": "cifar_resnet.data.folder.Folder", "root": {"_target_": "os.system"}}, "only numbers, short"),
        ("digits", "does not say what it was trained on"),
        (None, "does not say what it was trained on"),
    ):
        rewrite(file, source=source)
        with pytest.raises(InputError, match=answer):
            evaluate(f"ckpt={file}")
    assert not Path("hacked").exists()
    assert evaluate(f"ckpt={file}", "data=digits").accuracy == run.evaluation.accuracy


def test_evaluation_finds_the_images_that_were_split_off_for_the_test(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / "photos" / ("bright", "dark")[number % 2]).mkdir(parents=True, exist_ok=True)
        grey = Image.new("RGB", (32, 32), (250 - 200 * (number % 2) - number,) * 3)
        grey.save(f"photos/{('bright', 'dark')[number % 2]}/{number:02}.png")
    words = ["data=folder", "data.root=photos", "model.width=2", "trainer.accelerator=cpu", "seed=5"]
    run = train(*words, *GIVEN, "trainer.max_epochs=2", "schedule.peak_epoch=1")
    ckpt = f"ckpt={run.folder}/checkpoints/last.ckpt"
    assert run.evaluation.images == 8
    for number in range(20):  # which would have been drawn otherwise
        Image.new("RGB", (32, 32)).save(f"photos/dark/a{number}.png")
    again = evaluate(ckpt)
    assert (again.images, again.accuracy) == (8, run.evaluation.accuracy)
    tested = torch.load(Path(f"{run.folder}/checkpoints/last.ckpt"), weights_only=True)["source"]["test_files"]
    Path("photos", tested[0]).unlink()
    with pytest.raises(InputError, match=r"no such image; of the 8 that were split off for the test 1 are not there"):
        evaluate(ckpt)
