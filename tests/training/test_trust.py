"""A checkpoint from a stranger is data: it calls what is known or what the user trusts, and imports nothing else."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SGD, make_classifier, make_data
from torch import nn
from torch.optim import Optimizer

from cifar_resnet.cli.compose import compose
from cifar_resnet.errors import InputError
from cifar_resnet.experiment import evaluate
from cifar_resnet.inference.export import export
from cifar_resnet.inference.predict import predict
from cifar_resnet.training.checkpoint import load_classifier
from cifar_resnet.training.named import make
from cifar_resnet.training.trust import KNOWN, allowed_call

OWN = "cifar_resnet.models.CustomResNet"
MADE = "MADE"  # in a gadget: the file that it makes when it is called


@pytest.fixture(scope="module")
def honest() -> dict[str, Any]:
    classifier = make_classifier(make_data())
    return {"state_dict": classifier.state_dict(), "hyper_parameters": dict(classifier.hparams)}


@pytest.fixture
def save(tmp_path: Path, honest: dict[str, Any]) -> Callable[..., Path]:
    """Write a checkpoint with other hyperparameters than the honest one."""

    def written(state_dict: dict[str, Any] | None = None, **hparams: Any) -> Path:
        changed = {"hyper_parameters": honest["hyper_parameters"] | hparams}
        torch.save(honest | changed | ({"state_dict": state_dict} if state_dict else {}), tmp_path / "strange.ckpt")
        return tmp_path / "strange.ckpt"

    return written


def naming(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


SHELL = naming("os.system", command=f"touch {MADE}")
CALLS = [
    SHELL,
    naming("posix.system", command=f"touch {MADE}"),
    naming("os.mkdir", path=MADE),
    naming("os.makedirs", name=MADE),
    naming("os.popen", cmd=f"touch {MADE}"),
    naming("os.open", path=MADE, flags=66),
    naming("builtins.open", file=MADE, mode="w"),
    naming("io.open", file=MADE, mode="w"),
    naming("builtins.eval", source=f"open('{MADE}', 'w')"),
    naming("builtins.exec", source=f"open('{MADE}', 'w')"),
    naming("builtins.__import__", name="gadget"),
    naming("importlib.import_module", name="gadget"),
    naming("runpy.run_module", mod_name="gadget"),
    naming("pydoc.locate", path="gadget"),
    naming("pkgutil.resolve_name", name="gadget:Net"),
    naming("gadget.Net"),
    naming("subprocess.run", args=["touch", MADE]),
    naming("subprocess.Popen", args=["touch", MADE]),
    naming("subprocess.getoutput", cmd=f"touch {MADE}"),
    naming("shutil.copyfile", src="/etc/hostname", dst=MADE),
    naming("shutil.rmtree", path=MADE),
    naming("pathlib.Path.write_text", self=MADE, data="x"),
    naming("pathlib.Path.touch", self=MADE),
    naming("tempfile.mkdtemp", prefix=MADE),
    naming("torch.save", obj=[1], f=MADE),
    naming("torch.load", f=MADE, weights_only=False),
    naming("torch.hub.load", repo_or_dir="owner/name", model="net"),
    naming("torch.hub.download_url_to_file", url="file:///etc/hostname", dst=MADE),
    naming("torch.utils.collect_env.run", command=f"touch {MADE}"),
    naming("torch.nn.Sequential"),
    naming("torch.optim.sgd.warnings.warn", message="x"),
    naming("torch.optim.Optimizer", defaults=[]),
    naming("torch.optim.lr_scheduler.StepLR", step_size=1),
    naming("sympy.sympify", a=f"open('{MADE}', 'w')"),
    naming("numpy.load", file=MADE, allow_pickle=True),
    naming("pickle.loads", data="x"),
    naming("hydra.utils.instantiate", config=["os.system"]),
    naming("hydra.utils.call", config=["os.system"]),
    naming("torchvision.models.get_model", name="resnet18", weights="DEFAULT"),
    naming("torchvision.models.resnet.load_state_dict_from_url", url="http://localhost/x"),
    naming("torchvision._internally_replaced_utils.load_state_dict_from_url", url="http://localhost/x"),
    naming("torchvision.models.segmentation.fcn_resnet50", weights_backbone="DEFAULT"),
    naming("torchvision.models.resnet18.__globals__"),
    naming("cifar_resnet.models.custom_resnet.nn.Sequential"),
    naming("cifar_resnet.models.custom_resnet.ResBlock", channels=2),
    naming("cifar_resnet.modelsX.CustomResNet"),
    naming("cifar_resnet.models.CustomResNet.load_state_dict"),
    naming("cifar_resnet.training.checkpoint.load_classifier", path=MADE),
    naming("cifar_resnet.training.checkpoint_io.AtomicCheckpointIO"),
    naming("ｏｓ.system", command=f"touch {MADE}"),
]
ARGUMENTS = [
    naming(OWN, width=2, x=SHELL),
    naming(OWN, width=2, x=[SHELL]),
    naming(OWN, width=2, x=[[{"a": 1}]]),
    naming(OWN, x={}),
    naming(OWN, x="long " * 100),
    naming(OWN, x=torch.zeros(1)),
    naming("torchvision.models.resnet18", weights=SHELL),
    naming("torchvision.models.resnet18", norm_layer=naming("builtins.eval", source=MADE)),
    naming("timm.create_model", model_name="resnet18", pretrained_cfg={"file": MADE}),
]
HIDDEN = [
    naming(OWN, _args_=[SHELL]),
    naming(OWN, _partial_=True),
    naming(OWN, _recursive_=True),
    naming(OWN, _convert_="all"),
    naming(OWN, __class__="x"),
]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path]) -> Callable[..., str]:
    """Return what a checkpoint is refused with, after nothing has been called, written or imported."""
    (tmp_path / "gadget.py").write_text(f"open({str(tmp_path / MADE)!r}, 'w')\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def line(load: Callable[[Path], object], **hparams: Any) -> str:
        path = save(**hparams)
        modules, files = set(sys.modules), sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError) as error:
            load(path)
        assert set(sys.modules) == modules
        assert sorted(tmp_path.rglob("*")) == files
        assert str(error.value).startswith(f"ckpt={path}")
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 700
        return str(error.value)

    return line


def loaded(path: Path) -> object:
    return load_classifier(str(path))


def test_the_gadgets_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that their silence says something: called as a configuration's own calls are, they do what they are for."""
    monkeypatch.chdir(tmp_path)
    for call in (SHELL, naming("os.mkdir", path=MADE), naming("builtins.open", file=MADE, mode="w")):
        with pytest.raises(InputError, match="it makes a"):
            make(nn.Module, call, "model")
        made = tmp_path / MADE
        made.rmdir() if made.is_dir() else made.unlink()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["_target_"])
@pytest.mark.parametrize("key", ["model", "optimizer"])
def test_what_is_not_known_is_not_called(refused: Callable[..., str], key: str, call: dict[str, Any]) -> None:
    name = ascii(call["_target_"])[1:-1]
    line = refused(loaded, **{key: call})
    assert f"its {key} wants to call {name}, which is not known here; if you trust that code, add trust={name}" in line


@pytest.mark.parametrize("call", ARGUMENTS, ids=str)
def test_an_argument_is_a_plain_value(refused: Callable[..., str], call: dict[str, Any]) -> None:
    assert "only numbers, short texts and lists of them can be" in refused(loaded, model=call)
    optimizer = naming("torch.optim.SGD") | {name: value for name, value in call.items() if name != "_target_"}
    assert "only numbers, short texts and lists of them can be" in refused(loaded, optimizer=optimizer)


@pytest.mark.parametrize("call", HIDDEN, ids=str)
def test_what_a_configuration_library_would_act_on_is_no_argument(
    refused: Callable[..., str], call: dict[str, Any]
) -> None:
    assert "cannot be set here; it is no argument" in refused(loaded, model=call)
    assert "cannot be set here; it is no argument" in refused(loaded, optimizer=call)


@pytest.mark.parametrize(
    ("hparams", "words"),
    [
        ({"model": SHELL}, "its model wants to call os.system"),
        ({"optimizer": SHELL}, "its optimizer wants to call os.system"),
        ({"model": ARGUMENTS[0]}, f"its model gives x to {OWN}"),
    ],
)
def test_all_jobs_refuse(refused: Callable[..., str], hparams: dict[str, Any], words: str) -> None:
    overrides = {"evaluate": ["data=digits"], "predict": ["images=strange.ckpt"], "export": ["format=torchscript"]}
    configs = {name: compose(name, "ckpt=strange.ckpt", *given) for name, given in overrides.items()}
    jobs: dict[str, Callable[[Any], object]] = {"evaluate": evaluate, "predict": predict, "export": export}
    for name, config in configs.items():

        def run(path: Path, name: str = name, config: Any = config) -> object:
            return jobs[name](config.model_copy(update={"ckpt": str(path)}))

        assert words in refused(run, **hparams)


class Exploit:
    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("key", ["model", "temperature", "anything"])
def test_a_pickle_is_not_run(refused: Callable[..., str], key: str) -> None:
    for call in ((eval, f"open('{MADE}', 'w')"), (Path.touch, Path(MADE)), (__import__, "gadget")):
        assert "is not a readable checkpoint" in refused(loaded, **{key: Exploit(*call)})


def test_what_is_known() -> None:
    networks, optimizers = KNOWN[nn.Module], KNOWN[Optimizer]
    assert {OWN, "cifar_resnet.models.resnet18", "torchvision.models.resnet18", "timm.create_model"} < networks
    assert {
        "cifar_resnet.models.custom_resnet.CustomResNet",
        "torchvision.models.vision_transformer.vit_b_16",
    } < networks
    assert {"torch.optim.SGD", "torch.optim.AdamW", "torch.optim.adamw.AdamW", "timm.optim.Muon"} < optimizers
    for name in (*networks - {"timm.create_model"}, *optimizers - {"timm.optim.Muon"}):
        package = name.split(".")[0]
        assert package in {"cifar_resnet", "torchvision", "torch"}
    assert not networks & optimizers


def test_weights_are_not_fetched_for_a_network_whose_weights_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    plain = naming("torchvision.models.squeezenet1_1")
    weights = make_classifier(make_data(), model=plain).state_dict()
    for fetching in ({"weights": "IMAGENET1K_V1"}, {"pretrained": True}):
        classifier = load_classifier(str(save(weights, model=plain | fetching)))
        assert all(torch.equal(value, weights[name]) for name, value in classifier.state_dict().items())


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (naming("cifar_resnet.models.from_torchvision", name="get_model"), "torchvision has no classification network"),
        (naming("cifar_resnet.models.from_torchvision", name="fcn_resnet50"), "torchvision has no classification"),
        (naming("cifar_resnet.models.libraries.from_torchvision"), "missing a required argument: 'name'"),
        (naming("cifar_resnet.models.libraries.settle"), "which is not known here"),
        (naming("cifar_resnet.models.from_timm", name="hf_hub:owner/name"), "timm"),
        (naming("cifar_resnet.models.from_timm", name="local-dir:/tmp"), "timm"),
    ],
    ids=str,
)
def test_a_network_of_a_library_is_one_that_it_names(
    save: Callable[..., Path], call: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        load_classifier(str(save(model=call)))


def test_a_network_of_a_library_reads_no_weights_beside_those_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path]
) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("fetched"))
    plain = naming("cifar_resnet.models.from_torchvision", name="squeezenet1_1")
    weights = make_classifier(make_data(), model=plain).state_dict()
    (tmp_path / "trap.pth").mkdir()  # reading it would be an error
    for fetching in (
        {"weights": str(tmp_path / "trap.pth")},
        {"pretrained": True},
        {"pretrained": "yes", "weights": 1},
    ):
        classifier = load_classifier(str(save(weights, model=plain | fetching)))
        assert all(torch.equal(value, weights[name]) for name, value in classifier.state_dict().items())


TIMM = """
import torch
calls = []
def create_model(model_name, pretrained=False, num_classes=10, **given):
    calls.append({"model_name": model_name, "pretrained": pretrained, **given})
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, num_classes))
"""


def test_timm_makes_a_network_by_a_plain_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path], refused: Callable[..., str]
) -> None:
    weights = {f"network.1.{name}": value for name, value in nn.Linear(3072, 3).state_dict().items()}
    statistics = {name: torch.full((3,), 0.5) for name in ("mean", "std", "test_mean", "test_std")}
    call = naming("timm.create_model", model_name="resnet18.a1_in1k", pretrained=True, checkpoint_path="/etc/passwd")
    for name in ("hf-hub:owner/name", "local-dir:/tmp", "resnet18\n", "", None):
        assert "no plain name" in refused(loaded, model=call | {"model_name": name})
    (tmp_path / "timm.py").write_text(TIMM)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    load_classifier(str(save(weights | statistics, model=call)))
    (seen,) = sys.modules.pop("timm").calls
    assert seen == {"model_name": "resnet18.a1_in1k", "pretrained": False, "checkpoint_path": ""}


NETS = """
from os import system
from torch import nn
imported = True
class Net(nn.Module):
    def __init__(self, num_classes, weights=None):
        super().__init__()
        self.fc, self.weights = nn.Linear(3072, num_classes), weights
    def forward(self, x):
        return self.fc(x.flatten(1))
class Other:
    def __init__(self, num_classes): open("MADE", "w")
def make_net(num_classes): return Net(num_classes)
constant = 1
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A user's two packages that can be imported; return the weights of a network of theirs."""
    for package in ("my_package", "my_package2"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "nets.py").write_text(NETS)
        for module in (package, f"{package}.nets"):
            monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    statistics = {name: torch.full((3,), 0.5) for name in ("mean", "std", "test_mean", "test_std")}
    return statistics | {f"network.fc.{name}": value for name, value in nn.Linear(3072, 3).state_dict().items()}


@pytest.mark.parametrize("trust", ["my_package", "my_package.nets", "my_package.nets.Net", "other my_package"])
def test_what_the_user_trusts_is_called(
    save: Callable[..., Path], own_package: dict[str, torch.Tensor], trust: str
) -> None:
    path = save(own_package, model=naming("my_package.nets.Net", weights=[0.5, 1]))
    classifier = load_classifier(str(path), trust)
    assert type(classifier.network).__name__ == "Net"
    assert classifier.network.weights == [0.5, 1]  # what it means is the user's own affair


@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize("trust", ["my_packag", "my_package.nets.Ne", "my_package.net", "my_package2", "*", "."])
def test_trust_is_of_whole_names(refused: Callable[..., str], trust: str) -> None:
    line = refused(lambda path: load_classifier(str(path), trust), model=naming("my_package.nets.Net"))
    assert line.endswith(f"add 'trust={trust} my_package.nets.Net'")
    line = refused(lambda path: load_classifier(str(path), "my_package"), model=naming("my_package2.nets.Net"))
    assert "my_package2.nets.Net, which is not known here" in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_package.nets.Other", "which makes no network"),
        ("my_package.nets.system", "which is posix.system; if you trust"),
        ("my_package.nets.constant", "which is"),
        ("my_package.nets.Gone", "cannot be imported: module 'my_package.nets' has no attribute 'Gone'"),
        ("my_package.gone.Net", "cannot be imported: No module named 'my_package.gone'"),
        ("my_package.nets.nn.Module", "cannot be imported: No module named 'my_package.nets.nn'"),
    ],
)
@pytest.mark.usefixtures("own_package")
def test_trusted_code_still_has_to_make_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path], name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="its model") as error:
        load_classifier(str(save(model=naming(name))), "my_package")
    assert words in str(error.value)
    assert not (tmp_path / MADE).exists()


def test_the_jobs_hand_on_whom_the_user_trusts(
    tmp_path: Path, save: Callable[..., Path], own_package: dict[str, torch.Tensor]
) -> None:
    path = save(own_package, model=naming("my_package.nets.make_net"))
    output = tmp_path / "net.pt"
    assert export(compose("export", f"ckpt={path}", "trust=my_package", "format=torchscript", f"output={output}"))
    for command, needed in (("evaluate", []), ("predict", ["images=x"]), ("export", [])):
        assert compose(command, f"ckpt={path}", *needed).trust is None


def test_an_optimizer_may_be_trusted_beside_a_network(honest: dict[str, Any]) -> None:
    lion = naming("lion.Lion", beta=0.9)
    assert allowed_call(Optimizer, lion, "my_package lion", "x") == lion
    assert allowed_call(Optimizer, SGD, None, "x") == SGD
    assert allowed_call(nn.Module, honest["hyper_parameters"]["model"], None, "x") == naming(OWN, width=2)
