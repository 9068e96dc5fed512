"""Renders docs/templates into the Markdown pages, with every measured figure taken from a file of benchmarks/results.

A template is Markdown with tags. `{{ FILE#KEY | FORMAT }}` becomes a figure: KEY is a path of names and indices
separated by `/` (a `/` or `|` inside a name is written `%2F` or `%7C`), FORMAT, which may be left out, is a Python
format. `{{ older results }}` becomes a table of the files that are older than a method they measure.
`{{ measured: FILE }}` becomes a remark where the file was measured with an older version of the method, else
nothing. Code blocks and inline code are copied unchanged. `make figures` writes the pages; a test renders them again.
"""

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
TAG = re.compile(r"\{\{ ([\w./-]+)#(.+?)(?: \| (\S+))? \}\}")
AGE = re.compile(r"\{\{ measured: ([\w./-]+) \}\}")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
OLDER = "{{ older results }}"
EARLIER = " Measured with an earlier version of the comparison."
HEADER = "<!-- Generated from {}: edit that file, then run `make figures`. -->\n\n"


def templates(root: Path = ROOT) -> dict[Path, Path]:
    """The template of each generated page, by the path of the page."""
    folder = root / "docs" / "templates"
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*.md"))}
    return {root / name if name == Path("README.md") else root / "docs" / name: path for name, path in found.items()}


@cache
def results(path: Path) -> Any:
    """Content of a result file, which is read once."""
    return json.loads(path.read_text())


def figure(file: str, key: str, form: str | None, root: Path = ROOT) -> str:
    """One figure of a result file as text.

    Args:
        file: Name under `benchmarks/results`.
        key: Path inside it.
        form: A Python format.
        root: The repository.

    Returns:
        The figure as text.

    Raises:
        KeyError: If the file has nothing at this key.
    """
    value = results(root / "benchmarks" / "results" / file)
    for word in map(unquote, key.split("/")):
        try:
            value = value[int(word)] if isinstance(value, list) else value[word]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(f"{file} has nothing at {key} (from '{word}' on)") from None
    return format(value, form or "")


def earlier(file: str, root: Path = ROOT) -> str:
    """Remark for a result file that is older than the method it measures; empty where it is up to date."""
    source = (root / "src" / "stemma" / "kinship" / "weights" / "version.py").read_text()
    current = int(re.findall(r"^VERSION = (\d+)$", source, re.MULTILINE)[0])
    measured = results(root / "benchmarks" / "results" / file).get("measured_with", {})
    return "" if measured.get("kinship.weights", 0) >= current else EARLIER


def older_results(root: Path = ROOT) -> str:
    """A table of the result files that are older than a method that they measure."""
    from testbeds.measured import VERSIONS, current

    lines = ["| figures | method | measured | now | written by |", "|---|---|---|---|---|"]
    for path in sorted((root / "benchmarks" / "results").glob("*.json")):
        made = results(path).get("made_with", {})
        for method, version in made.get("methods", {}).items():
            now = current(method, root) if method in VERSIONS else version
            if version < now:
                was = f"version {version}" if version else "before versions"
                lines.append(f"| {path.stem} | {method} | {was} | version {now} | {made['commit'][:9]} |")
    return "\n".join(lines) if len(lines) > 2 else "No file is older than the methods that it measures."


def render(text: str, root: Path = ROOT) -> str:
    """Replace every tag of a template; raise ValueError for a tag that is not well formed."""
    parts = CODE.split(text)
    for i in range(0, len(parts), 2):
        part = parts[i].replace(OLDER, older_results(root)) if OLDER in parts[i] else parts[i]
        part = AGE.sub(lambda m: earlier(m[1], root), part)
        parts[i] = TAG.sub(lambda m: figure(m[1], m[2], m[3], root), part)
        if left := re.search(r"\{\{.{0,60}", parts[i]):
            raise ValueError(f"a tag is not well formed: {left[0]}")
    return "".join(parts)


def page(template: Path, root: Path = ROOT) -> str:
    """A generated page: a comment that names its template, then the rendered template."""
    return HEADER.format(template.relative_to(root).as_posix()) + render(template.read_text(), root)


PANEL, GAP, KINDS = (
    180,
    26,
    {"mlp": "perceptron", "cnn": "residual CNN", "vit": "vision transformer", "lm": "language model"},
)


def null_picture(root: Path = ROOT) -> str:
    """Distribution of p-values of independent networks, one panel per kind, as an SVG; an exact test is diagonal."""
    kinds = json.loads((root / "benchmarks" / "results" / "null.json").read_text())["kinds"]
    width, height = len(KINDS) * (PANEL + GAP) + GAP, PANEL + 72
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
    ]
    out.append(f'<rect width="{width}" height="{height}" fill="#fff"/>')
    for i, (kind, title) in enumerate(KINDS.items()):
        left, top = GAP + i * (PANEL + GAP), 26
        quantiles = kinds[kind]["randomised_quantiles"]
        line = " ".join(
            f"{left + PANEL * p:.1f},{top + PANEL * (1 - k / (len(quantiles) - 1)):.1f}"
            for k, p in enumerate(quantiles)
        )
        out += [
            f'<text x="{left}" y="16" fill="#333">{title}: {kinds[kind]["pairs"]:,} pairs</text>',
            f'<rect x="{left}" y="{top}" width="{PANEL}" height="{PANEL}" fill="none" stroke="#bbb"/>',
            f'<path d="M{left} {top + PANEL}L{left + PANEL} {top}" stroke="#c33" stroke-dasharray="4 4"/>',
            f'<polyline points="{line}" fill="none" stroke="#246" stroke-width="2"/>',
            f'<text x="{left + PANEL / 2}" y="{top + PANEL + 18}" text-anchor="middle" fill="#555">p-value</text>',
        ]
    caption = "Share of pairs with a p-value up to p. Dashed: an exact test."
    out.append(f'<text x="{GAP}" y="{height - 6}" fill="#555">{caption}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def verdict_picture(root: Path = ROOT) -> str:
    """Obfuscated copies that are detected, and independent models called copies, beside two baselines; an SVG."""
    folder = root / "benchmarks" / "results"
    attack, independent = (json.loads((folder / f"verdicts_{n}.json").read_text()) for n in ("attack", "independent"))
    rows = {"Stemma": (attack["summary"]["related"], independent["kinds"]["all"]["false_descent"])}
    for name, key in (("weight matching", "after weight matching"), ("cosine of all weights", "cosine")):
        rows[name] = tuple(attack["baselines"][key][k] for k in ("related_found", "apart_taken_for_related"))
    row, left, wide, gap = 34, 190, 230, 60
    height = 44 + row * len(rows) + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 2 * wide + gap + 30} {height}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{left + 2 * wide + gap + 30}" height="{height}" fill="#fff"/>',
    ]
    for panel, title in enumerate(("obfuscated copies detected", "independent models called related")):
        start = left + panel * (wide + gap)
        out.append(f'<text x="{start}" y="20" fill="#333" font-weight="bold">{title}</text>')
        for i, (name, cells) in enumerate(rows.items()):
            y, cell = 34 + row * i, cells[panel]
            low, high = cell["interval"]
            if not panel:
                out.append(f'<text x="{left - 10}" y="{y + 15}" text-anchor="end" fill="#333">{name}</text>')
            colour = "#aaa" if i else (COLOURS[0], COLOURS[1])[panel]
            out += [
                f'<rect x="{start}" y="{y + 2}" width="{wide}" height="16" fill="#f2f2f2"/>',
                f'<rect x="{start}" y="{y + 2}" width="{wide * cell["rate"]:.1f}" height="16" fill="{colour}"/>',
                f'<path d="M{start + wide * low:.1f} {y + 10}H{start + wide * high:.1f}" stroke="#000"/>',
                f'<text x="{start}" y="{y + 30}" fill="#555" font-size="10">{cell["count"]:,} of {cell["of"]:,}</text>',
            ]
    caption = "Lines: 95 % intervals. Baselines are given the tensor names, and the best threshold of the other half."
    out.append(f'<text x="10" y="{height - 10}" fill="#555">{caption}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


ROW, COLOURS = 17, ("#246", "#a42", "#383", "#848")


def _dendrogram(
    title: str, names: list[str], groups: dict[str, str], order: list[str], linkage: list, left: int
) -> list[str]:
    """One dendrogram with its leaves on the right; a branch within one group has the colour of the group."""
    top, width, colours = 44, 200, dict(zip(dict.fromkeys(groups.values()), COLOURS, strict=True))
    highest = linkage[-1][2]
    nodes = [(0.0, top + ROW * order.index(n), colours[groups[n]]) for n in names]
    out = [f'<text x="{left}" y="20" fill="#333" font-weight="bold">{title}</text>']
    for a, b, height, _ in linkage:
        (h1, y1, c1), (h2, y2, c2) = nodes[int(a)], nodes[int(b)]
        x, x1, x2 = (left + width * (1 - h / highest) for h in (height, h1, h2))
        colour = c1 if c1 == c2 else "#aaa"
        out += [
            f'<path d="M{x:.1f} {y1:.1f}H{x1:.1f}" stroke="{c1}" fill="none"/>',
            f'<path d="M{x:.1f} {y2:.1f}H{x2:.1f}" stroke="{c2}" fill="none"/>',
            f'<path d="M{x:.1f} {y1:.1f}V{y2:.1f}" stroke="{colour}" fill="none"/>',
        ]
        nodes.append((height, (y1 + y2) / 2, colour))
    for i, name in enumerate(order):
        y = top + ROW * i + 4
        out.append(f'<text x="{left + width + 6}" y="{y}" fill="{colours[groups[name]]}">{name}</text>')
    for i, (group, colour) in enumerate(colours.items()):
        out.append(f'<text x="{left + 84 * i}" y="{top + ROW * len(order) + 14}" fill="{colour}">{group}</text>')
    return out


def relatedness_picture(root: Path = ROOT) -> str:
    """Similarity trees of tasks, from published distances and from the default distance of our networks, as an SVG."""
    files = [
        json.loads((root / "benchmarks" / "results" / f"{n}.json").read_text())
        for n in ("taskonomy", "task_relatedness")
    ]
    published, own = files[0]["tree"], files[1]["trees"]["gradient field, default"]
    first = dict(zip(published["order"], published["groups"], strict=True))
    second = dict(zip(files[1]["tasks"], files[1]["kinds"], strict=True))
    height = 44 + ROW * max(len(first), len(second)) + 26
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="820" height="{height}" fill="#fff"/>',
        *_dendrogram("Taskonomy, published", files[0]["tasks"], first, published["order"], published["linkage"], 16),
        *_dendrogram("Fashion-MNIST, our networks", files[1]["tasks"], second, own["order"], own["linkage"], 460),
    ]
    return "\n".join([*out, "</svg>"]) + "\n"


METHODS = (
    "single a", "single v", "joint", "agm, sign flipped", "agm, alpha 2", "agm, alpha 2, parity", "ogm, alpha 0.8",
    "ogm-ge, alpha 0.3", "mslr", "mses", "gradient blending", "encoder rates, tuned",
)  # fmt: skip


def balance_picture(root: Path = ROOT) -> str:
    """Accuracy of two competing views by training method, late and early fusion, with intervals, as an SVG."""
    found = json.loads((root / "benchmarks" / "results" / "multimodal_competition.json").read_text())
    tables = found["summary"]["tables"]["competition"]
    row, left, wide, low = 22, 170, 290, 0.5
    bottom = 40 + row * len(METHODS)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 2 * wide + 86} {bottom + 46}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{left + 2 * wide + 86}" height="{bottom + 46}" fill="#fff"/>',
    ]
    for i, method in enumerate(METHODS):
        out.append(f'<text x="{left - 12}" y="{44 + row * i + 8}" text-anchor="end" fill="#333">{method}</text>')
    for k, (fusion, table) in enumerate(tables.items()):
        start = left + k * (wide + 56)

        def at(share: float, start: int = start) -> float:
            return round(start + wide * (share - low) / (1 - low), 1)

        joint = at(table["joint"]["accuracy"]["fused"]["mean"])
        out.append(f'<text x="{start}" y="20" fill="#333" font-weight="bold">{fusion} fusion</text>')
        out.append(f'<path d="M{start} 32V{bottom}H{start + wide}" stroke="#bbb" fill="none"/>')
        out.append(f'<path d="M{joint} 32V{bottom}" stroke="#c33" stroke-dasharray="4 4"/>')
        for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
            out.append(
                f'<text x="{at(tick)}" y="{bottom + 16}" text-anchor="middle" fill="#555">{100 * tick:.0f} %</text>'
            )
        for i, method in enumerate(METHODS):
            fused, y = table[method]["accuracy"]["fused"], 44 + row * i + 4
            ends = [at(min(max(fused[e], low), 1)) for e in ("low", "high")]
            colour = COLOURS[1] if method.startswith("agm") else COLOURS[0]
            out.append(f'<path d="M{ends[0]} {y}H{ends[1]}" stroke="{colour}" stroke-width="5" opacity=".35"/>')
            out.append(f'<circle cx="{at(fused["mean"])}" cy="{y}" r="4.5" fill="{colour}"/>')
    caption = "Accuracy on test digits, mean and 95 % interval over seeds. Dashed: joint training."
    out.append(f'<text x="{left}" y="{bottom + 38}" fill="#555">{caption}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "multimodal.svg").write_text(balance_picture())
    (ROOT / "docs" / "relatedness.svg").write_text(relatedness_picture())
    (ROOT / "docs" / "verdicts.svg").write_text(verdict_picture())
    (ROOT / "docs" / "null.svg").write_text(null_picture())
    for target, template in templates().items():
        target.write_text(page(template))
