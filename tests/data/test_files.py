"""Which files a pattern means: each once, whatever else lies in the folders, and what could not be searched."""

import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_resnet.data.files import Found, find, first_of, is_special, printable
from cifar_resnet.errors import InputError

NOBODY = 65_534


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)  # for the ordinary user
    photos = Path("photos")
    photos.mkdir()
    return photos


@pytest.fixture
def ordinary_user() -> Iterator[Callable[[], None]]:
    """Called, it makes an ordinary user of root, who runs tests in a container and may read everything."""
    before = os.geteuid()
    yield lambda: os.seteuid(NOBODY if before == 0 else before)
    os.seteuid(before)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_are_found_in_the_order_of_their_names(photos: Path) -> None:
    touch(photos, "b.png", "a.png", "c.jpg", "[x] 1.png", "deep/er/d.png", ".hidden.png", ".hidden/e.png")
    assert find("photos/?.png") == Found([photos / "a.png", photos / "b.png"], [], [], [])
    assert find("photos/[x] 1.png").files == [photos / "[x] 1.png"]
    assert find("photos/*") == Found(sorted(photos.glob("[!.]*.*")), [photos / "deep"], [], [])
    assert find("photos/**").files == sorted([*photos.glob("[!.]*.*"), photos / "deep/er/d.png"])
    assert find("photos/.*.png").files == find("photos/.hidden.png").files == [photos / ".hidden.png"]
    assert find("photos/*/../a.png").files == [photos / "deep/../a.png"]


@pytest.mark.parametrize("pattern", ["**/d.png", "**/er/*", "photos/**/**/d.*", "*/deep/**", "photos/../**/d.png"])
def test_two_stars_go_into_folders(photos: Path, pattern: str) -> None:
    touch(photos, "deep/er/d.png")
    (found,) = find(pattern).files
    assert found.samefile(photos / "deep/er/d.png")
    assert find(str(photos.absolute().parent / pattern)).files == [found.absolute()]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("photos", "no image is in that folder"), ("none/*.jpg", "no file matches"), ("pho*", "no file matches")],
)
def test_a_pattern_without_files_is_refused(photos: Path, pattern: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"images={pattern.replace('*', '.')}.*{hint}"):
        find(pattern)


def test_links_that_lead_in_circles_are_not_followed(photos: Path) -> None:
    for folder in ("one", "two"):
        touch(photos, f"{folder}/a.png")
        for target in ("one", "two"):
            (photos / folder / f"to {target}").symlink_to(f"../{target}")
    found = find("photos/**/*.png")
    assert found.files == [photos / "one/a.png", photos / "two/a.png"]
    assert len(found.errors) == 4
    assert str(found.errors[0]) == "photos/one/to one is a link to a folder, and ** follows none"
    assert find("photos/one/to two/*.png") == Found([photos / "one/to two/a.png"], [], [], [])


def test_a_link_that_leads_nowhere_is_found_for_reading_says_what_is_wrong(photos: Path) -> None:
    (photos / "nowhere.png").symlink_to("none")
    (photos / "itself.png").symlink_to("itself.png")
    links = [photos / "itself.png", photos / "nowhere.png"]
    assert find("photos/*") == find("photos/**") == Found(links, [], [], [])
    assert find("photos/nowhere.png").files == links[1:]


def test_pipes_sockets_and_devices_are_told_from_files(photos: Path) -> None:
    touch(photos, "a.png")
    os.mkfifo(photos / "pipe.png")
    (photos / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("photos/socket.png")
    special = [photos / name for name in ("device.png", "pipe.png", "socket.png")]
    assert find("photos/*") == Found([photos / "a.png"], [], special, [])
    assert first_of(special) == "photos/device.png and 2 more"
    assert not is_special(photos)
    assert not is_special(photos / "none")
    with pytest.raises(InputError, match="no file matches"):
        find("photos/pipe.png")


def test_what_is_locked_is_said_and_the_rest_found(photos: Path, ordinary_user: Callable[[], None]) -> None:
    touch(photos, "open/a.png", "locked/a.png", "listed/a.png")
    (photos / "locked").chmod(0)
    (photos / "listed").chmod(0o744)
    ordinary_user()
    locked = "photos/locked cannot be searched (Permission denied)"
    for pattern in ("photos/**/*.png", "photos/*/a.png"):
        found = find(pattern)
        assert photos / "open/a.png" in found.files
        assert locked in map(str, found.errors)
    assert len(find("photos/**").errors) == 1
    for pattern in ("photos/locked/*", "photos/locked/**", "photos/locked/a.png"):
        with pytest.raises(InputError, match=re.escape(locked)):
            find(pattern)


@given(st.text(st.characters(codec=None, exclude_characters="\0"), min_size=1))
def test_a_files_name_takes_one_line(name: str) -> None:
    shown = printable(Path(name))
    assert shown.isprintable()
    assert shown.encode()
