"""Makes the pictures of `docs/gallery` from published checkpoints: pages and the family tree, in headless Chromium.

    python docs/gallery.py ZOO

ZOO is a folder of checkpoints: real ones, whose origin is known. Needs Playwright and Chromium.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GALLERY = Path(__file__).parent / "gallery"

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

FLOAT, INT8 = "mlperf_tiny/resnet8_float", "mlperf_tiny/resnet8_int8"

PAGES = {
    "trace": ("trace", "zoo/mlperf_tiny/resnet8_int8.safetensors", "--against", "zoo"),
    "trace-unknown-direction": ("trace", "zoo/waifu2x_upconv7_photo/noise1_scale2.0x.safetensors", "--against", "zoo"),
    "compare": ("compare", f"zoo/{FLOAT}.safetensors", f"zoo/{INT8}.safetensors"),
    "explain": ("explain", f"zoo/{FLOAT}.safetensors", f"zoo/{INT8}.safetensors"),
    "lineage": ("lineage",),
}
"""By picture: the command whose page it shows."""

HEIGHTS = {"trace": 1180, "trace-unknown-direction": 1180, "compare": 1180, "explain": 1180, "lineage": 1180}


def stemma(*words: str, cwd: Path) -> None:
    """Run one command."""
    subprocess.run([sys.executable, "-m", "stemma", *words], check=True, cwd=cwd, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def served(cwd: Path) -> Iterator[str]:
    """The address of the atlas."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-m", "stemma", "serve", "--port", str(port)], cwd=cwd, stdout=subprocess.DEVNULL
    ) as process:
        address = f"http://127.0.0.1:{port}"
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/tree/drawing").read()
                break
            time.sleep(0.1)
        yield address
        process.terminate()


def picture(browser: Any, address: str, name: str, height: int, select: str = "") -> None:
    """Take one picture, in few colours so that the file is small."""
    from PIL import Image

    page = browser.new_context(viewport={"width": 1280, "height": height}).new_page()
    page.goto(address)
    if select:
        page.wait_for_selector("#tree-panel h2")
    page.wait_for_timeout(400)
    file = GALLERY / f"{name}.png"
    page.screenshot(path=str(file))
    Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


def main(zoo: Path) -> None:
    """Make all pictures."""
    from playwright.sync_api import sync_playwright

    GALLERY.mkdir(exist_ok=True)
    chromium = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        cwd = Path(folder)
        os.environ |= {"XDG_DATA_HOME": str(cwd / "data"), "SOURCE_DATE_EPOCH": "1764547200"}
        os.environ.pop("STEMMA_REGISTRY", None)
        (cwd / "zoo").symlink_to(zoo.resolve())
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        stemma("add", "zoo", cwd=cwd)
        for name, words in PAGES.items():
            stemma(*words, "--html", f"{name}.html", cwd=cwd)
            picture(browser, (cwd / f"{name}.html").as_uri(), name, HEIGHTS[name])
        with served(cwd) as address:
            picture(browser, f"{address}/tree?select={INT8}", "tree", 760, INT8)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
