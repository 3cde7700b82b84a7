"""The package as a library and as a wheel: the README's lines run, and the wheel works from any folder."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

import cifar_resnet
from cifar_resnet.build import build_data
from cifar_resnet.checks import try_classifier
from cifar_resnet.cli import overrides
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.overrides import CONFIGS

ROOT = CONFIGS.parent


def test_the_readmes_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(lines.replace('"experiment=quickstart"', '"experiment=quickstart", "trainer.max_epochs=2"'), names)
    run = names["run"]
    assert 0.5 < run.accuracy <= 1  # type: ignore[attr-defined]
    assert 0 < run.lr_min < run.lr_max  # type: ignore[attr-defined]
    assert (run.folder / "report.html").exists()  # type: ignore[attr-defined]
    assert not run.classifier.training  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the package stands as a wheel brings it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("cifar_resnet", "configs", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    command = [
        sys.executable, "-c", "from setuptools.build_meta import build_wheel; print(build_wheel('..'))",
    ]  # fmt: skip
    subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_every_file_that_the_package_needs(installed: Path) -> None:
    def files(folder: Path, *patterns: str) -> set[str]:
        return {str(path.relative_to(folder)) for pattern in patterns for path in folder.rglob(pattern)}

    assert files(installed / "cifar_resnet" / "configs", "*.yaml") == files(CONFIGS, "*.yaml")
    package = ROOT / "cifar_resnet"
    assert files(installed / "cifar_resnet", "*.py", "*.jinja") == files(package, "*.py", "*.jinja")


def test_a_wheel_works_from_any_folder(installed: Path, tmp_path: Path) -> None:
    code = (
        "import cifar_resnet; print(cifar_resnet.__file__)\n"
        "run = cifar_resnet.train('data=digits', 'data.train_size=100', 'model.width=2', 'trainer.max_epochs=2',"
        " 'schedule.peak_epoch=1', 'schedule.lr_min=0.01', 'schedule.lr_max=0.1', 'trainer.accelerator=cpu')\n"
        "print((run.folder / 'report.html').exists())"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stdout
    assert done.stdout.strip().endswith("True")


def test_the_images_of_the_docs_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of the page on images, as far as these are read, and that with the table to the end."""
    text = (ROOT / "docs" / "your_own.md").read_text()
    text = text[: text.index("## Your own source")]
    (table,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    folders, listed, downloaded = re.findall(r"^    python scripts/train.py (.*)", text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text(table)
    for shade, name in enumerate(("cat", "dog")):
        Path("photos", name).mkdir(parents=True)
        for number in range(1, 6):
            Image.new("RGB", (60, 50), (200 * shade, number, 0)).save(f"photos/{name}/{number:04}.jpg")
    data = build_data(compose("train", *folders.split()), devices=1)
    data.setup()
    assert data.classes == ("cat", "dog")
    assert [len(part or ()) for part in (data.train, data.test)] == [8, 2]
    quick = [
        "model.width=2",
        "trainer.max_epochs=2",
        "schedule.peak_epoch=1",
        "schedule.lr_min=0.01",
        "schedule.lr_max=0.1",
    ]
    run = cifar_resnet.train(*listed.split(), *quick, "data.batch_size=2", "trainer.accelerator=cpu")
    assert "labels.csv" in (run.folder / "report.html").read_text()
    assert compose("train", *downloaded.split()).data.name == "CIFAR100"


def test_the_networks_of_the_docs_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of the page on networks, as far as the images; its code and its file are those of the page."""
    text = (ROOT / "docs" / "your_own.md").read_text()
    text = text[text.index("## A network of torchvision or timm") :]
    (code,), (choice,) = (re.findall(rf"```{name}\n(.*?)```", text, re.DOTALL) for name in ("python", "yaml"))
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "networks.py").write_text(code)
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "model" / "my_net.yaml").write_text(choice)
    monkeypatch.setattr(overrides, "CONFIGS", tmp_path / "configs")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("my_package")]:  # of another test
        monkeypatch.delitem(sys.modules, name)
    commands = re.findall(r"^    .*python scripts/train.py (.*)", text, re.MULTILINE)
    for command, name in zip(commands, ("ResNet", "Sequential", "MyNet", "MyNet"), strict=True):
        if "model=timm" not in command or find_spec("timm"):
            assert type(try_classifier(compose("train", *command.split())).network).__name__ == name
