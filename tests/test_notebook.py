"""Results show themselves in a notebook: small HTML that is safe, and plots where matplotlib is installed."""

import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import stemma as st
from checkpoints import arrays_of, child_of
from edited_networks import trained
from page_documents import lineages, traces
from stemma.errors import MissingExtraError
from stemma.types import Edge, ModelRef

pytestmark = pytest.mark.anywhere

HOSTILE = "<script>alert(1)</script>$\\x$\u202e\x1b[2J"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the functions of a notebook give, as a user gets it."""
    folder = tmp_path_factory.mktemp("notebook")
    for name, arrays in (("a", arrays_of(0)), ("stranger", arrays_of(1)), ("child", child_of(arrays_of(0), 5)),
                         ("copy", arrays_of(0))):  # fmt: skip
        save_file(arrays, folder / f"{name}.safetensors")
    a, stranger, child, copy = (folder / f"{n}.safetensors" for n in ("a", "stranger", "child", "copy"))
    net = trained("mlp")
    return {
        "trace": st.trace(child, against=[a, stranger]),
        "trace of a stranger": st.trace(stranger, against=[a]),
        "trace of a copy": st.trace(copy, against=[a]),
        "compare": st.compare(a, child),
        "compare strangers": st.compare(a, stranger),
        "compare with probes": st.compare(net, net, probes="noise:n=16,seed=0"),
        "lineage": st.lineage([a, child, copy, stranger]),
        "distance": st.distance(net, net, probes="noise:n=16,seed=0"),
    }


NAMES = ("trace", "trace of a stranger", "trace of a copy", "compare", "compare strangers", "compare with probes",
         "lineage", "distance")  # fmt: skip


class _Reader(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


@pytest.mark.parametrize("name", NAMES)
def test_a_result_shows_itself_as_safe_html(results: dict[str, Any], name: str) -> None:
    markup = results[name]._repr_html_()
    reader = _Reader(markup)
    assert reader.tags[0] == ("div", {"class": "stemma-result"})
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "img", "a"}
    assert not {key for _, given in reader.tags for key in given if key in ("src", "href") or key.startswith("on")}
    assert "url(" not in markup
    assert all(line.startswith((".stemma-result", "  ", "}")) for line in markup.split("</style>")[0].splitlines()[1:])
    assert markup == results[name]._repr_html_()
    assert len(markup) < 20_000


def test_the_html_says_the_answer(results: dict[str, Any]) -> None:
    said = {name: " ".join(" ".join(_Reader(results[name]._repr_html_()).text).split()) for name in NAMES}
    assert "child is related to a" in said["trace"]
    assert "2 models searched" in said["trace"]
    assert "no known parent" in said["trace of a stranger"]
    assert "copy is a copy of a" in said["trace of a copy"]
    assert "function not looked at" in said["compare"]
    assert "no shared weights found" in said["compare strangers"]
    assert "4 models: 1 family , 1 edge" in said["lineage"]
    assert "distance 0" in said["distance"]


def _hostile() -> list[Any]:
    (merge,) = (document for what, document in traces(HOSTILE) if what == "merge")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in merge.items() if k in st.Trace.__dataclass_fields__}
    (every,) = (document for what, document in lineages(HOSTILE) if what == "every relation")
    kept = {k: tuple(v) for k, v in every.items() if k in st.Lineage.__dataclass_fields__}
    kept |= {"models": tuple(ModelRef(**m) for m in every["models"]), "edges": tuple(Edge(**e) for e in every["edges"])}
    return [st.Trace(**{**fields, "model": ModelRef(**merge["model"])}), st.Lineage(**kept)]


def test_hostile_names_are_text_in_a_notebook() -> None:
    for result in _hostile():
        markup = result._repr_html_()
        assert "script" not in {tag for tag, _ in _Reader(markup).tags}
        assert not {"\u202e", "\x1b"} & set(markup)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib (the extra 'plots') is not installed")
    matplotlib.use("agg")

    def draw(result: Any) -> Any:
        axes = result.plot()
        axes.figure.canvas.draw()
        return axes

    return draw


@pytest.mark.parametrize("name", NAMES)
def test_a_result_draws_itself(results: dict[str, Any], drawn: Callable[[Any], Any], name: str) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

    axes = drawn(results[name])
    assert isinstance(axes, Axes)
    assert axes.get_title(loc="left")
    assert results[name].plot(axes) is axes
    pixels = np.asarray(axes.figure.canvas.buffer_rgba())
    assert (pixels[..., :3] < 250).any(axis=-1).mean() > 0.003
    plt.close("all")


def test_plots_show_what_was_measured(results: dict[str, Any], drawn: Callable[[Any], Any]) -> None:
    import matplotlib.pyplot as plt

    bars = drawn(results["trace"])
    assert [bar.get_width() for bar in bars.patches] == [c["weights"]["effect"] for c in results["trace"].candidates]
    tree = drawn(results["lineage"])
    assert {"a", "child", "copy", "stranger"} <= {text.get_text() for text in tree.texts}
    (band,) = drawn(results["compare"]).patches
    assert band.get_height() == 1  # function was not looked at
    assert 0.5 <= band.get_x() <= 1
    for result in _hostile():
        drawn(result)  # dollars are no formulas
    plt.close("all")


def test_without_matplotlib_one_sentence_names_the_extra(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == "matplotlib"] + ["matplotlib", "matplotlib.pyplot"]:
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("trace", "compare", "lineage", "distance"):
        with pytest.raises(MissingExtraError, match=r"needs the package 'matplotlib'.*stemma-ml\[plots\]"):
            results[name].plot()


@pytest.mark.anywhere
def test_a_result_shows_itself_whatever_was_imported_first(tmp_path: Path) -> None:
    code = (
        "from stemma.types import Distance, Spec\n"
        "import sys\n"
        "assert 'stemma.export' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "d = Distance(a='a', b='b', fingerprint=Spec('f'), measure=Spec('m'), value=.5)\n"
        "assert 'distance <b>.5</b>' in d._repr_html_()\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
