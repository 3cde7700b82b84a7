"""The house: arrows run one way, a folder is used through its modules, and nobody needs torch to ask for help."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cifar_resnet

PACKAGE = Path(cifar_resnet.__file__).parent
FLOORS = (
    {"experiment"},
    {"checks"},
    {"build", "results"},
    {"callbacks", "inference"},
    {"lr", "analysis"},
    {"training"},
    {"models", "data", "cli"},
    {"errors", "interruption", "messages"},
)
"""From top to bottom; a file imports from lower floors only, and within its own folder."""
LONGEST_FILE = 250


def room(module: str) -> str:
    return module.split(".")[1]


def imports(file: Path) -> list[str]:
    """Every module of the package that a file imports, inside functions too."""
    nodes = ast.walk(ast.parse(file.read_text()))
    found = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cifar_resnet"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += names if node.module.count(".") < 1 else [node.module]
    return found


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_arrows_run_one_way() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for file in files():
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imports(file):
            assert room(module) == own or floor[room(module)] > floor[own], f"{file} imports {module}"


def test_every_room_has_a_floor_and_a_door() -> None:
    rooms = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in files()}
    assert rooms == set().union(*FLOORS)
    for folder in {file.parent for file in files()}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_a_file_is_one_idea() -> None:
    assert {file.name: lines for file in files() if (lines := len(file.read_text().splitlines())) > LONGEST_FILE} == {}


def test_no_two_public_functions_have_one_name() -> None:
    """A job of the package and the function that does it are one."""
    names = Counter(
        node.name
        for file in files()
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, cifar_resnet; print(*{'torch', 'lightning', 'hydra', 'pydantic', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
