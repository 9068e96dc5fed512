"""Shapes alone never call anything hidden that a network shows to the outside, or that is tied."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stemma.architectures.from_shapes import from_shapes

# Networks whose truth is known by construction: shapes by tensor, and per axis the units it carries ("" for none).
# Widths come from a small set, so that pixels, classes, tokens and hidden units collide often.

WIDTH = st.sampled_from([5, 8, 10, 12, 16, 24, 32, 48, 64])


def mlp(draw):
    sizes = draw(st.lists(WIDTH, min_size=3, max_size=6))
    units = ["", *(f"h{i}" for i in range(len(sizes) - 2)), ""]
    out = {}
    for i in range(len(sizes) - 1):
        out[f"w{i}"] = ((sizes[i + 1], sizes[i]), (units[i + 1], units[i]))
        out[f"b{i}"] = ((sizes[i + 1],), (units[i + 1],))
    return out


def plain_cnn(draw):
    sizes = [draw(st.sampled_from([1, 3, 12])), *draw(st.lists(WIDTH, min_size=2, max_size=6))]
    window = draw(st.sampled_from([1, 3, 5]))
    out = {}
    for i in range(len(sizes) - 1):
        before = f"h{i}" if i else ""
        out[f"w{i}"] = ((sizes[i + 1], sizes[i], window, window), (f"h{i + 1}", before, "", ""))
        out[f"b{i}"] = ((sizes[i + 1],), (f"h{i + 1}",))
    last, classes, area = len(sizes) - 1, draw(st.sampled_from([2, 8, 10, 16, 64])), draw(st.sampled_from([1, 4, 9]))
    out["fc"] = ((classes, sizes[-1] * area), ("", f"h{last}" if area == 1 else ""))
    return out


def residual_cnn(draw):
    """With projections, or with padded shortcuts: then channels of wider stages are pinned."""
    width, stages, blocks = draw(st.sampled_from([8, 16])), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padded = draw(st.booleans())
    out = {"stem": ((width, 3, 3, 3), ("s0", "", "", ""))}
    for stage in range(stages):
        wide, stream = width * 2**stage, "" if padded and stage else f"s{stage}"
        for b in range(blocks):
            grows = stage > 0 and b == 0
            before, source = (wide // 2, "" if padded and stage > 1 else f"s{stage - 1}") if grows else (wide, stream)
            mid, name = draw(st.sampled_from([wide, wide, wide - 3])), f"m{stage}.{b}"
            out[f"a{stage}.{b}"] = ((mid, before, 3, 3), (name, source, "", ""))
            out[f"c{stage}.{b}"] = ((wide, mid, 3, 3), (stream, name, "", ""))
            out[f"n{stage}.{b}"] = ((wide,), (stream,))
            if grows and not padded:
                out[f"d{stage}"] = ((wide, before, 1, 1), (stream, source, "", ""))
    out["fc"] = ((draw(st.sampled_from([10, 16, 32])), wide), ("", stream))
    return out


def unet(draw):
    """Concatenated maps: an axis of two groups is no free axis."""
    w, depth = draw(st.sampled_from([8, 16])), draw(st.integers(1, 3))
    out = {"in": ((w, 3, 3, 3), ("e0", "", "", ""))}
    for i in range(depth):
        out[f"down{i}"] = ((w * 2 ** (i + 1), w * 2**i, 3, 3), (f"e{i + 1}", f"e{i}", "", ""))
    below = f"e{depth}"
    for i in reversed(range(depth)):
        out[f"up{i}"] = ((w * 2**i, w * 2 ** (i + 1), 2, 2), (f"u{i}", below, "", ""))
        out[f"join{i}"] = ((w * 2**i, w * 2 ** (i + 1), 3, 3), (f"j{i}", "", "", ""))
        below = f"j{i}"
    out["out"] = ((draw(st.sampled_from([1, 3, 8])), w, 1, 1), ("", below, "", ""))
    return out


def transformer(draw):
    d, layers = draw(st.sampled_from([16, 24, 32, 64])), draw(st.integers(1, 3))
    heads, kv = draw(st.sampled_from([d, d, 64, 48])), draw(st.sampled_from([d, 8, 16]))
    inner, gated = draw(st.sampled_from([48, 64, 96, 128])), draw(st.booleans())
    tokens, fused = draw(st.sampled_from([48, 64, 96, 128, 300])), draw(st.booleans())
    out = {"embed": ((tokens, d), ("", "s"))}
    if draw(st.booleans()):
        out["head"] = ((tokens, d), ("", "s"))
    if draw(st.booleans()):
        out["position"] = ((draw(st.sampled_from([20, 400])), d), ("", "s"))
    for i in range(layers):
        if fused:
            out[f"qkv{i}"] = ((3 * d, d), ("", "s"))
            out[f"o{i}"] = ((d, d), ("s", ""))
        else:
            out[f"q{i}"], out[f"o{i}"] = ((heads, d), ("", "s")), ((d, heads), ("s", ""))
            out[f"k{i}"] = out[f"v{i}"] = ((kv, d), ("", "s"))
            out[f"qb{i}"] = ((heads,), ("",))
        out[f"up{i}"] = ((inner, d), (f"m{i}", "s"))
        out[f"down{i}"] = ((d, inner), ("s", f"m{i}"))
        if gated:
            out[f"gate{i}"] = ((inner, d), (f"m{i}", "s"))
        out[f"n1{i}"] = out[f"n2{i}"] = ((d,), ("s",))
    return out


def recurrent(draw):
    h, x, layers = draw(WIDTH), draw(WIDTH), draw(st.integers(1, 3))
    out = {}
    for i in range(layers):
        out[f"ih{i}"] = ((4 * h, x if i == 0 else h), ("", "" if i == 0 else f"h{i - 1}"))
        out[f"hh{i}"] = ((4 * h, h), ("", f"h{i}"))
        out[f"b{i}"] = ((4 * h,), ("",))
    out["fc"] = ((draw(WIDTH), h), ("", f"h{layers - 1}"))
    return out


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_shapes_alone_never_call_anything_hidden_that_is_not(data):
    maker = data.draw(st.sampled_from([mlp, plain_cnn, residual_cnn, unet, transformer, recurrent]))
    built = maker(data.draw)
    order = data.draw(st.permutations(sorted(built)))
    reverse = data.draw(st.booleans())
    turn = (lambda t: tuple(reversed(t))) if reverse else tuple
    found = from_shapes({f"t{i}": turn(built[n][0]) for i, n in enumerate(order)})
    for i, name in enumerate(order):
        shape, units = built[name]
        for label, unit in zip(found.axes[f"t{i}"], turn(units), strict=True):
            assert label.kind == "fixed" or unit, (name, shape, units, sorted((n, b[0]) for n, b in built.items()))


def test_shapes_alone_find_what_they_can():
    cnn = {"x": (16, 3, 3, 3), "y": (40, 16, 3, 3), "z": (10, 40), "b": (16,)}
    found = from_shapes(cnn)
    assert {g.name: g.size for g in found.groups} == {"size 16": 16, "size 40": 40}
    assert found.axes["z"][0].role == "unknown"
    assert found.axes["z"][1].kind == "unit"
    collision = from_shapes({"x": (64, 64), "y": (48, 64), "z": (10, 48)})
    assert not collision.groups
    assert {g.size for g in from_shapes({"x": (40, 64), "y": (48, 40), "z": (10, 48)}).groups} == {40, 48}
