"""Writes measured figures into the documents: every tag takes its value from a file under benchmarks/results.

A tag reads `<!-- results: FILE#KEY FORMAT -->figure<!-- / -->`. KEY is a path of names and indices separated by `/` (a
space is `%20`), FORMAT, which may be left out, a Python format. Run it after a benchmark (`make figures`); a test
compares every figure with its file.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
TAG = re.compile(r"(<!-- results: ([\w./-]+)#([^\s#]+)(?: (\S+))? -->)([^<|\n]*)(<!-- / -->)")


AGE = re.compile(r"(<!-- measured: ([\w./-]+) -->)([^<|\n]*)(<!-- / -->)")
EARLIER = " Measured with an earlier version of the comparison."
"""What a page says where the tag `<!-- measured: FILE --><!-- / -->` stands and the file is older than the method."""


def pages(root: Path = ROOT) -> list[Path]:
    """The documents.

    Returns:
        Markdown files, the README first.
    """
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


@cache
def results(path: Path) -> Any:
    """What a result file holds; it is read once.

    Args:
        path: The file.

    Returns:
        Its content.
    """
    return json.loads(path.read_text())


def figure(file: str, key: str, form: str | None, root: Path = ROOT) -> str:
    """One figure as its result file has it.

    Args:
        file: Name under `benchmarks/results`.
        key: Path inside it.
        form: A Python format.
        root: The repository.

    Returns:
        The figure as text.

    Raises:
        KeyError: If the file has nothing there.
    """
    value = results(root / "benchmarks" / "results" / file)
    for word in map(unquote, key.split("/")):
        try:
            value = value[int(word)] if isinstance(value, list) else value[word]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(f"{file} has nothing at {key} (from '{word}' on)") from None
    return format(value, form or "")


def earlier(file: str, root: Path = ROOT) -> str:
    """What a page says of a result file that is older than the method that it measures.

    Args:
        file: Name under `benchmarks/results`.
        root: The repository.

    Returns:
        A remark; empty where the file was measured with the method as it is, or later.
    """
    source = (root / "src" / "stemma" / "kinship" / "weights" / "version.py").read_text()
    now = int(re.findall(r"^VERSION = (\d+)$", source, re.MULTILINE)[0])
    measured = results(root / "benchmarks" / "results" / file).get("measured_with", {})
    return "" if measured.get("kinship.weights", 0) >= now else EARLIER


def filled(text: str, root: Path = ROOT) -> str:
    """A document with every figure as measured.

    Args:
        text: The document.
        root: The repository.

    Returns:
        The same with the figures replaced; code blocks and inline code are left alone.
    """
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = AGE.sub(lambda m: m[1] + earlier(m[2], root) + m[4], parts[i])
        parts[i] = TAG.sub(lambda m: m[1] + figure(m[2], m[3], m[4], root) + m[6], parts[i])
    return "".join(parts)


PANEL, GAP, KINDS = (
    180,
    26,
    {"mlp": "perceptron", "cnn": "residual CNN", "vit": "vision transformer", "lm": "language model"},
)


def null_picture(root: Path = ROOT) -> str:
    """Distribution of p-values between independent networks, one panel a kind; the diagonal is what is wanted.

    Args:
        root: The repository.

    Returns:
        An SVG.
    """
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
    said = "Share of pairs with a p-value up to p. Dashed: an exact test."
    out.append(f'<text x="{GAP}" y="{height - 6}" fill="#555">{said}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


ROW, HUES = 17, ("#246", "#a42", "#383", "#848")


def _dendrogram(
    title: str, names: list[str], groups: dict[str, str], order: list[str], linkage: list, left: int
) -> list[str]:
    """One tree, leaves on the right; a branch has the colour of its group as long as it holds one group only."""
    top, width, hues = 44, 200, dict(zip(dict.fromkeys(groups.values()), HUES, strict=True))
    highest = linkage[-1][2]
    nodes = [(0.0, top + ROW * order.index(n), hues[groups[n]]) for n in names]
    out = [f'<text x="{left}" y="20" fill="#333" font-weight="bold">{title}</text>']
    for a, b, height, _ in linkage:
        (h1, y1, c1), (h2, y2, c2) = nodes[int(a)], nodes[int(b)]
        x, x1, x2 = (left + width * (1 - h / highest) for h in (height, h1, h2))
        hue = c1 if c1 == c2 else "#aaa"
        out += [
            f'<path d="M{x:.1f} {y1:.1f}H{x1:.1f}" stroke="{c1}" fill="none"/>',
            f'<path d="M{x:.1f} {y2:.1f}H{x2:.1f}" stroke="{c2}" fill="none"/>',
            f'<path d="M{x:.1f} {y1:.1f}V{y2:.1f}" stroke="{hue}" fill="none"/>',
        ]
        nodes.append((height, (y1 + y2) / 2, hue))
    for i, name in enumerate(order):
        y = top + ROW * i + 4
        out.append(f'<text x="{left + width + 6}" y="{y}" fill="{hues[groups[name]]}">{name}</text>')
    for i, (group, hue) in enumerate(hues.items()):
        out.append(f'<text x="{left + 84 * i}" y="{top + ROW * len(order) + 14}" fill="{hue}">{group}</text>')
    return out


def relatedness_picture(root: Path = ROOT) -> str:
    """Similarity trees of tasks: the published distances, and our own networks by the default distance.

    Args:
        root: The repository.

    Returns:
        An SVG.
    """
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


BALANCED = (
    "single a", "single v", "joint", "agm, sign flipped", "agm, alpha 2", "agm, alpha 2, parity", "ogm, alpha 0.8",
    "ogm-ge, alpha 0.3", "mslr", "mses", "gradient blending", "encoder rates, tuned",
)  # fmt: skip


def balance_picture(root: Path = ROOT) -> str:
    """Accuracy of two competing views by way of training, late and early fusion, with intervals over seeds.

    Args:
        root: The repository.

    Returns:
        An SVG.
    """
    found = json.loads((root / "benchmarks" / "results" / "multimodal_competition.json").read_text())
    tables = found["summary"]["tables"]["competition"]
    row, left, wide, low = 22, 170, 290, 0.5
    bottom = 40 + row * len(BALANCED)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + 2 * wide + 86} {bottom + 46}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{left + 2 * wide + 86}" height="{bottom + 46}" fill="#fff"/>',
    ]
    for i, method in enumerate(BALANCED):
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
        for i, method in enumerate(BALANCED):
            fused, y = table[method]["accuracy"]["fused"], 44 + row * i + 4
            ends = [at(min(max(fused[e], low), 1)) for e in ("low", "high")]
            hue = HUES[1] if method.startswith("agm") else HUES[0]
            out.append(f'<path d="M{ends[0]} {y}H{ends[1]}" stroke="{hue}" stroke-width="5" opacity=".35"/>')
            out.append(f'<circle cx="{at(fused["mean"])}" cy="{y}" r="4.5" fill="{hue}"/>')
    said = "Accuracy on test digits, mean and 95 % interval over seeds. Dashed: joint training."
    out.append(f'<text x="{left}" y="{bottom + 38}" fill="#555">{said}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "multimodal.svg").write_text(balance_picture())
    (ROOT / "docs" / "relatedness.svg").write_text(relatedness_picture())
    (ROOT / "docs" / "null.svg").write_text(null_picture())
    for page in pages():
        page.write_text(filled(page.read_text()))
