"""Command lines that nobody thought of: each gives a configuration, or one short line and exit code 2."""

import io
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifar_resnet.cli import command
from cifar_resnet.cli.overrides import CONFIGS
from cifar_resnet.cli.schema import COMMANDS
from cifar_resnet.cli.wording import describe

SCRIPTS = CONFIGS.parent / "scripts"
LINES = int(os.environ.get("GENERATED_LINES", "500"))
PROCESSES = int(os.environ.get("GENERATED_PROCESSES", "20"))
"""How many command lines are tried in this process, and how many as processes of their own."""

MIX = ("train", "train", "lr_find", "evaluate", *("predict", "export") * 3)  # the last two are composed soonest
NEEDED = {"evaluate": ["ckpt=x"], "predict": ["ckpt=x", "images=x"], "export": ["ckpt=x"]}
SIGNS = ("", "", "", "", "+", "++", "~", "@", "-", "--", "+++", "!", "~+")
OPTIONS = ("-h", "--help", "-m", "--multirun", "--cfg", "--cfg=job", "job", "--", "-", "", "-c", "--info", "--cfg=all")
HYDRA = (
    "hydra.run.dir", "hydra.searchpath", "hydra", "hydra/launcher", "hydra.job.chdir", "defaults", "package", "_self_",
    "trainer@_global_", "data@x", "data/cifar10", "/data", "override data", "oc.env:HOME", "", ".", "a..b", "data.",
)  # fmt: skip
VALUES = (
    "", " ", "\t", "\n", "a\nb", "null", "None", "~", "true", "no", "nan", "inf", "-inf", "-1", "0", "1e999", "1_000",
    "0x10", "1e400", "1" * 400, "9" * 5_000, "l" * 5_000, "-0.0", ".5", "1,2", "1,", ",", "[]", "{}", "[1,2]", "[[1]]",
    "{a:1}", "{a:{b:{c:[]}}}", "[1,{a:[2]}]", "{a:", "]", "}", "(", ")", "'", '"', "'a", '"a"', "\\", "\\'", "'\\", "[",
    "a'b\"c", "it's, mine", "${x}", "${seed}", "${trainer}", "${oc.env:HOME}", "${oc.env:NOT_THERE}", "${data.root}",
    "${oc.env:HOME,${x}}", "${oc.decode:'{'}", "${oc.create:{a:1}}", "${oc.dict.keys:trainer}", "${oc.select:x}",
    "${hydra:runtime.cwd}", "${now:%Y}", "${python_version:}", "${", "$", "${}", "$}", "${:}", "${.x}", "${..seed}",
    "${x:y}", "???", "??", "@", "=", "==", "a=b", "a:b", ":", "%", "#", "!", "!!python/object:os", "&a", "*a", "|", ">",
    "größe", "日本", "\x00", "\x1b[31m", "\ud800", "\udcff", "\u202e", "🙂", "~/x", "~nobody/x", "/", "/proc/x", "..",
    "/dev/null", "s3://x", "a/b", "a b", "glob(*)", "choice(1,2)", "range(1,3)", "interval(0,1)", "range(1,0)",
    "int(x)", "sort(3,2)", "shuffle(1)", "extend_list(1)", "str(1)", "float(nan)", "tag(a,1)", "json_str({})",
    "[extend]", "_self_", "cifar10", "digits", "folder", "[quickstart,laptop]", "quickstart,laptop", "torch.optim.SGD",
    "os.system", "1.0", "16", "16-mixed", "auto", "cpu", "norm", "flip", "onnx",
)  # fmt: skip


def keys(name: str) -> list[str]:
    described = list(describe(COMMANDS[name]))
    sections = {key.rpartition(".")[0] for key in described} - {""}
    return [*described, *sorted(sections), *COMMANDS[name].groups]


def mutated(key: str, at: int, piece: str) -> str:
    """Put something into a key, or in the place of a letter of it."""
    at %= len(key) + 1
    return key[:at] + piece + key[at + len(piece) % 2 :]


@st.composite
def words(draw: st.DrawFn, name: str) -> str:
    """A word behind a command: mostly a key that exists with a value that may not."""
    kind = draw(st.integers(0, 11))
    if kind == 0:
        return draw(st.sampled_from(OPTIONS) | st.text(max_size=20))
    key = draw(st.sampled_from(HYDRA if kind == 1 else keys(name)))
    if kind in {2, 3}:
        key = mutated(
            key, draw(st.integers(0, 40)), draw(st.sampled_from([".", "/", "@", "ß", "x", "_", " ", "", "$", ":"]))
        )
    if kind == 4:
        key += draw(st.sampled_from([".x", "._target_", "._partial_", ".a.b", ".0", "._args_", "@x", ":x"]))
    if kind == 5 and draw(st.booleans()):
        return draw(st.sampled_from(SIGNS)) + key
    return draw(st.sampled_from(SIGNS)) + key + "=" + draw(st.sampled_from(VALUES) | st.text(max_size=10))


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    name = draw(st.sampled_from(MIX))
    needed = draw(st.sampled_from([NEEDED.get(name, [])] * 7 + [[]]))
    return name, [*needed, *draw(st.lists(words(name), min_size=1, max_size=3))]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder to be in."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("empty")
    os.chdir(folder)
    yield folder
    os.chdir(before)


def is_one_line(text: str, name: str) -> bool:
    return len(text) <= command.LONGEST_LINE + 1 and re.fullmatch(rf"{name}\.py: .+\n", text) is not None


@settings(max_examples=LINES, derandomize=True, suppress_health_check=list(HealthCheck))
@given(line=command_lines())
def test_a_command_line_gives_a_configuration_or_one_line(empty: Path, line: tuple[str, list[str]]) -> None:
    name, typed = line
    jobs: list[Any] = []
    code: object = None
    environment = dict(os.environ)
    with (
        mock.patch.object(sys, "argv", [f"{name}.py", *typed]),
        redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        try:
            command.run(name, jobs.append)
        except SystemExit as stopped:
            code = stopped.code
    out.seek(0)
    shown = out.read()
    if code is None:
        assert all(line.startswith("run ") for line in err.getvalue().splitlines())  # which of several
        assert all(type(config) is COMMANDS[name] for config in jobs)
        assert bool(jobs) != bool(shown)  # it is done, or help is shown
    else:
        assert code == 2
        assert (jobs, shown) == ([], "")
        assert is_one_line(err.getvalue(), name), err.getvalue()
    assert list(empty.iterdir()) == []
    assert dict(os.environ) == environment


def lines_that_start_nothing() -> list[tuple[str, list[str]]]:
    """Return command lines that ask for help or the configuration, or have a key that does not exist."""
    chance = random.Random(0)
    values = [value for value in VALUES if "\0" not in value and "\ud800" not in value]
    lines = []
    for _ in range(PROCESSES):
        name = chance.choice(list(COMMANDS))
        typed = [f"{chance.choice(SIGNS)}{chance.choice(keys(name))}={chance.choice(values)}" for _ in "12"]
        lines.append((name, [*typed[: chance.randint(0, 2)], chance.choice(("--help", "--cfg=job", "no_such_key=1"))]))
    return lines


def run_script(line: tuple[str, list[str]]) -> subprocess.CompletedProcess[str]:
    name, typed = line
    script = [sys.executable, str(SCRIPTS / f"{name}.py"), *typed]
    return subprocess.run(script, capture_output=True, text=True, check=False, timeout=60)


def test_so_does_a_process(empty: Path) -> None:
    lines = lines_that_start_nothing()
    with ThreadPoolExecutor(2) as pool:
        for (name, typed), done in zip(lines, pool.map(run_script, lines), strict=True):
            if done.returncode == 0:
                assert (bool(done.stdout), done.stderr) == (True, ""), typed
            else:
                assert (done.returncode, done.stdout) == (2, ""), (typed, done)
                assert is_one_line(done.stderr, name), (typed, done)
    assert list(empty.iterdir()) == []
