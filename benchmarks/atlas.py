"""What the pages of a large registry cost: first paint, frames while moving, and answers under load.

    python benchmarks/atlas.py [--seconds N] [--models N...]

writes benchmarks/results/atlas.json. Registries are simulated (`testbeds/atlas_registry.py`): 5,000 and 50,000 models.
Frames are counted in headless Chromium, which draws with the processor alone; without Chromium and Playwright that part
is left out and says so. The load (`testbeds/atlas_load.py`) runs on the same machine as the server.
"""

import argparse
import contextlib
import json
import os
import platform
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

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from safetensors.numpy import save_file

from stemma import __version__
from testbeds.atlas_registry import build
from testbeds.measured import write_result

RESULTS = Path(__file__).parent / "results" / "atlas.json"

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

MOVES = """async () => {
  const pan = (x, y) => stemmaTree.panBy(x / stemmaTree.view().k, y / stemmaTree.view().k);
  const steps = {
    "pan, all models in view": i => pan(60 * Math.cos(i / 5), 40 * Math.sin(i / 5)),
    "zoom in": i => stemmaTree.zoomBy(1.05),
    "pan, names in view": i => pan(20, 10),
    "zoom out": i => stemmaTree.zoomBy(1 / 1.05)};
  const out = {};
  for (const [name, step] of Object.entries(steps)) {
    const start = performance.now(), gaps = [];
    let last = start;
    for (let i = 0; i < 90; i++) {
      step(i);
      await new Promise(r => requestAnimationFrame(r));
      const now = performance.now();
      gaps.push(now - last);
      last = now;
    }
    gaps.sort((a, b) => a - b);
    const all = performance.now() - start;
    out[name] = {frames_per_second: Math.round(90000 / all), slowest_of_20_ms: Math.round(gaps[85])};
  }
  return out;
}"""


@contextlib.contextmanager
def served(registry: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a running atlas, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from stemma.cli import main; main()", "serve", "--registry", str(registry),
               "--port", str(port)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/static/icon.svg").read()
                break
            time.sleep(0.1)
        yield address, psutil.Process(process.pid)
        process.terminate()


def timed(address: str) -> float:
    """Seconds until an answer is there."""
    start = time.perf_counter()
    urllib.request.urlopen(address).read()
    return round(time.perf_counter() - start, 3)


def pages(registry: Path) -> dict[str, Any]:
    """What pages cost from a cold start, and in a browser."""
    with served(registry) as (address, process):
        out: dict[str, Any] = {
            "first_page_after_start_s": timed(f"{address}/"),
            "first_drawing_after_start_s": timed(f"{address}/tree/drawing"),
            "list_s": timed(f"{address}/?page=3"), "search_s": timed(f"{address}/?search=chat+org0001"),
            "by_family_s": timed(f"{address}/?sort=family"),
        }  # fmt: skip
        out["memory_mb"] = round(process.memory_info().rss / 1e6)
        out["browser"] = browser(address)
    return out


def browser(address: str) -> dict[str, Any] | str:
    """First paint of the tree, and frames while it is moved."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "not measured: playwright is not installed"
    chromium = shutil.which("chromium")
    if chromium is None:
        return "not measured: chromium is not installed"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = opened.new_context(viewport={"width": 1280, "height": 800}).new_page()
        start = time.perf_counter()
        page.goto(f"{address}/tree")
        page.wait_for_selector("#tree[data-ready]")
        drawn = round(time.perf_counter() - start, 2)
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        moves = page.evaluate(MOVES)
        version = opened.version
        opened.close()
    return {"chromium": version, "first_paint_s": round(paint / 1000, 2), "tree_drawn_s": drawn, "moves": moves}


def load(registry: Path, seconds: int, folder: Path) -> dict[str, Any]:
    """Fifty readers and four uploaders at once."""
    file = folder / "upload.safetensors"
    rng = np.random.default_rng(0)
    save_file({f"fc{i}.weight": rng.normal(size=(512, 512)).astype(np.float32) for i in range(2)}, file)
    program = Path(__file__).parent / "testbeds" / "atlas_load.py"
    with served(registry) as (address, process):
        timed(f"{address}/tree/drawing")
        before = process.memory_info().rss
        client = subprocess.Popen(
            [sys.executable, str(program), address, str(seconds), str(file)], stdout=subprocess.PIPE, text=True
        )
        most = before
        while client.poll() is None:
            most = max(most, process.memory_info().rss)
            time.sleep(0.5)
        assert client.stdout is not None
        found = json.loads(client.stdout.read())
    return {**found, "server_memory_mb": {"before": round(before / 1e6), "most": round(most / 1e6)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=120, help="of the load")
    parser.add_argument("--models", type=int, nargs="+", default=[5000, 50_000])
    options = parser.parse_args()
    out: dict[str, Any] = {
        "version": __version__, "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}", "sizes": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for n in options.models:
            registry = Path(folder) / f"{n}.db"
            edges = build(registry, n)
            out["sizes"][str(n)] = {"edges": edges, **pages(registry)}
            sys.stderr.write(f"{n}: {json.dumps(out['sizes'][str(n)])}\n")
        out["load"] = {"models": options.models[0]} | load(
            Path(folder) / f"{options.models[0]}.db", options.seconds, Path(folder)
        )
    write_result(RESULTS, out)


if __name__ == "__main__":
    main()
