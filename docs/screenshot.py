"""Save what a headless Chromium shows of a page, or of TensorBoard once the gallery of a run is there.

    python docs/screenshot.py lightning_logs docs/tensorboard.png
    python docs/screenshot.py "lightning_logs#images&tagFilter=gallery" gallery.png
    python docs/screenshot.py lightning_logs/version_0/errors.html#true=cat docs/errors.png

Everything stays on this machine: TensorBoard listens on the loopback address, and the browser opens nothing else.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from chromium import BROWSER, chromium


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Start TensorBoard on a free loopback port, and yield its address once it answers."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stderr)), None)
            if found is None:
                sys.exit(f"screenshot.py: TensorBoard ended with code {server.wait()}")
            yield found[0]
        finally:
            server.terminate()


def wait_for_gallery(address: str, seconds: float = 60) -> list[str]:
    """Return the tags of the gallery's pictures as soon as TensorBoard has read them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{address}data/plugin/images/tags") as answer:
            tags = {tag for run in json.load(answer).values() for tag in run}
        if gallery := sorted(tag for tag in tags if tag.startswith("gallery/")):
            return gallery
        time.sleep(1)
    sys.exit("screenshot.py: no run below the log folder has a gallery: train first, or name another folder")


def photograph(page: str, target: Path, size: str) -> None:
    """Save the page as the browser shows it after some seconds, in which TensorBoard draws its charts."""
    if BROWSER is None:
        sys.exit("screenshot.py: no browser found: install Chromium or Chrome")
    width, height = map(int, size.split(","))
    with chromium() as browser:
        browser.show(width, height)
        browser.send("Page.navigate", url=page)
        time.sleep(10)
        picture = Image.open(io.BytesIO(browser.screenshot()))
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", help="folder of TensorBoard's logs, or an .html file, with the part of the address after # if wanted"
    )
    parser.add_argument("target", type=Path, help="PNG file to write")
    parser.add_argument("--size", default="1180,690", help="width,height of the window in pixels")
    options = parser.parse_args()
    file, _, fragment = options.source.partition("#")
    if file.endswith(".html"):
        photograph(f"{Path(file).resolve().as_uri()}#{fragment}", options.target.absolute(), options.size)
        return
    with tensorboard(Path(file)) as address:
        wait_for_gallery(address)
        photograph(f"{address}#{fragment or 'timeseries'}", options.target.absolute(), options.size)


if __name__ == "__main__":
    main()
