// The family tree on a canvas: every model a point, from a parent a line to each child.
// Far away, points and lines are written as pixels; near, they are drawn with names. d3-zoom moves the view.
"use strict";

addEventListener("DOMContentLoaded", async () => {
  const canvas = document.getElementById("tree");
  if (!canvas) return;
  const ctx = canvas.getContext("2d", {alpha: false});
  const state = document.getElementById("tree-state"), panel = document.getElementById("tree-panel");
  const legend = document.getElementById("tree-legend"), find = document.getElementById("tree-find");
  const colourBy = document.getElementById("tree-colour"), names = document.getElementById("tree-names");
  const started = performance.now();
  const answer = await fetch("/tree/drawing");
  if (!answer.ok) { state.textContent = "the tree could not be loaded: " + (await answer.text()).slice(0, 200); return; }
  const data = await answer.json();
  const n = data.names.length, W = 170, H = 34, FAR = 0.25, NAMES = 0.5;
  const xs = Int32Array.from(data.x), ys = Int32Array.from(data.y);
  const MISSING = 1, UNDRAWN = 2;

  // Which model stands in a cell, and who is related to whom.
  const cells = new Map();
  const cell = (x, y) => x * 4194304 + y + 2097152;
  for (let i = 0; i < n; i++) cells.set(cell(xs[i], ys[i]), i);
  const parent = new Int32Array(n).fill(-1), below = new Map();
  const edges = data.edges, E = edges.length / 5;
  for (let e = 0; e < E; e++) {
    const p = edges[5 * e], c = edges[5 * e + 1];
    if (parent[c] < 0 || xs[c] === xs[p] + 1) parent[c] = p;
    if (!below.has(p)) below.set(p, []);
    below.get(p).push(c);
  }

  // Colours: categories have words in the legend; families only differ from their neighbours.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const BRIGHT = ["#1f77b4", "#d9691a", "#2a9134", "#c43137", "#8a5cc2", "#8c6148", "#cf5fa8", "#9a9a1f", "#1797a8", "#5b7a99", "#b8860b", "#6b6b6b"];
  const ON_DARK = ["#6db3f2", "#ff9f4d", "#6fd07a", "#ff7b80", "#c3a1f0", "#c9a08a", "#f29ad3", "#d6d65e", "#5fd3e3", "#a9c1da", "#f0c75e", "#b5b5b5"];
  let paint = {}, colour = [], wordOf = null, visibleWords = [];
  function palette() {
    const style = getComputedStyle(document.documentElement);
    const get = name => style.getPropertyValue(name).trim();
    paint = {ground: get("--ground"), ink: get("--ink"), soft: get("--soft"), line: get("--line"), link: get("--link"), set: dark.matches ? ON_DARK : BRIGHT};
  }
  function choose() {
    const by = colourBy.value, set = paint.set;
    colour = new Array(n);
    if (by === "family") {
      for (let i = 0; i < n; i++) colour[i] = data.family[i] ? set[data.family[i] % 11] : paint.soft;
      wordOf = null; visibleWords = [];
    } else if (by === "date") {
      const days = data.dates.map((d, i) => [d, i]).filter(d => d[0]).sort(), rank = new Map(days.map((d, i) => [d[1], i]));
      const ramp = d3.interpolateViridis, most = Math.max(1, days.length - 1);
      for (let i = 0; i < n; i++) colour[i] = rank.has(data.date[i]) ? ramp(0.1 + 0.8 * rank.get(data.date[i]) / most) : paint.soft;
      const ends = days.length ? [days[0], days[days.length - 1]] : [];
      visibleWords = [...new Set(ends)].map(d => [d[0], ramp(0.1 + 0.8 * rank.get(d[1]) / most)]);
    } else {
      const column = by === "licence" ? data.licence : data.relation, words = by === "licence" ? data.licences : data.relations;
      const counts = new Map();
      for (let i = 0; i < n; i++) if (column[i] >= 0) counts.set(column[i], (counts.get(column[i]) || 0) + 1);
      const order = [...counts].sort((a, b) => b[1] - a[1]).map(c => c[0]), place = new Map(order.map((w, i) => [w, i]));
      const plain = w => words[w] === "not recorded";
      for (let i = 0; i < n; i++) colour[i] = column[i] < 0 || plain(column[i]) ? paint.soft : set[Math.min(place.get(column[i]), 11)];
      visibleWords = order.slice(0, 12).map(w => [words[w], plain(w) ? paint.soft : set[Math.min(place.get(w), 11)], counts.get(w)]);
      if (by === "relation") visibleWords.push(["no parent drawn", paint.soft]);
    }
    colours32 = colour.map(number32);
    legend.replaceChildren(...visibleWords.map(([word, shade, count]) => {
      const row = document.createElement("span"), mark = document.createElement("canvas");
      mark.width = mark.height = 12;
      const m = mark.getContext("2d");
      m.fillStyle = shade; m.beginPath(); m.arc(6, 6, 5, 0, 7); m.fill();
      row.append(mark, " " + word.slice(0, 40) + (count ? " " + count.toLocaleString("en") : ""));
      return row;
    }));
  }
  const known32 = new Map();
  function number32(shade) {  // the colour as the pixel that a canvas holds
    if (!known32.has(shade)) { const c = d3.rgb(shade); known32.set(shade, (255 << 24 | c.b << 16 | c.g << 8 | c.r) >>> 0); }
    return known32.get(shade);
  }
  let colours32 = [];

  // The view.
  let view = d3.zoomIdentity, selected = -1, hovered = -1, waiting = false, width = 0, height = 0, ratio = 1, pixels = null;
  const bounds = () => {
    let x0 = 0, x1 = 1, y0 = 0, y1 = 1;
    for (let i = 0; i < n; i++) { if (xs[i] < x0) x0 = xs[i]; if (xs[i] > x1) x1 = xs[i]; if (ys[i] < y0) y0 = ys[i]; if (ys[i] > y1) y1 = ys[i]; }
    return [x0 * W - 20, y0 * H - 20, (x1 + 1) * W, (y1 + 1) * H];
  };
  const zoom = d3.zoom().scaleExtent([0.002, 3]).on("zoom", event => { view = event.transform; redraw(); });
  const surface = d3.select(canvas).call(zoom).on("dblclick.zoom", null);
  function fit() {
    const [x0, y0, x1, y1] = bounds(), k = Math.min(1.2, 0.96 * Math.min(width / (x1 - x0), height / (y1 - y0)));
    surface.call(zoom.transform, d3.zoomIdentity.translate((width - k * (x0 + x1)) / 2, (height - k * (y0 + y1)) / 2).scale(k));
  }
  function goTo(i, k = Math.max(view.k, 0.9)) {
    surface.call(zoom.transform, d3.zoomIdentity.translate(width * 0.4 - k * xs[i] * W, height * 0.45 - k * ys[i] * H).scale(k));
  }
  function resize() {
    const box = canvas.getBoundingClientRect();
    ratio = Math.min(2, devicePixelRatio || 1); width = box.width; height = box.height;
    canvas.width = Math.max(1, Math.round(width * ratio)); canvas.height = Math.max(1, Math.round(height * ratio));
    pixels = null;
    redraw();
  }
  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  function draw() {
    frames.push(performance.now());
    if (view.k < FAR) drawFar(); else drawNear();
    if (selected >= 0) ring(selected, paint.link, 3);
    if (hovered >= 0 && hovered !== selected) ring(hovered, paint.ink, 1.5);
    if (view.k < NAMES && hovered >= 0) label(hovered);
  }
  function drawFar() {
    const w = canvas.width, h = canvas.height;
    if (!pixels) pixels = ctx.createImageData(w, h);
    const out = new Uint32Array(pixels.data.buffer);
    out.fill(number32(paint.ground));
    const k = view.k * ratio, dx = view.x * ratio, dy = view.y * ratio, line = number32(paint.line);
    for (let e = 0; e < E; e++) {
      const p = edges[5 * e], c = edges[5 * e + 1];
      const x0 = Math.round(xs[p] * W * k + dx), x1 = Math.round(xs[c] * W * k + dx);
      const y0 = Math.round(ys[p] * H * k + dy), y1 = Math.round(ys[c] * H * k + dy);
      if (Math.max(y0, y1) < 0 || Math.min(y0, y1) >= h) continue;
      const bus = xs[c] === xs[p] + 1 ? y1 : Math.round((ys[c] - 0.5) * H * k + dy);
      if (x0 >= 0 && x0 < w) for (let y = Math.max(0, Math.min(y0, bus)), last = Math.min(h - 1, Math.max(y0, bus)); y <= last; y++) out[y * w + x0] = line;
      if (bus >= 0 && bus < h) for (let x = Math.max(0, Math.min(x0, x1)), last = Math.min(w - 1, Math.max(x0, x1)); x <= last; x++) out[bus * w + x] = line;
    }
    const size = Math.max(2, Math.round(Math.min(9 * k * 3, 5 * ratio))), half = size >> 1;
    for (let i = 0; i < n; i++) {
      const x = Math.round(xs[i] * W * k + dx) - half, y = Math.round(ys[i] * H * k + dy) - half;
      if (x < 0 || y < 0 || x + size > w || y + size > h) continue;
      const shade = colours32[i];
      for (let v = 0; v < size; v++) out.fill(shade, (y + v) * w + x, (y + v) * w + x + size);
    }
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.putImageData(pixels, 0, 0);
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  }
  const place = i => [xs[i] * W * view.k + view.x, ys[i] * H * view.k + view.y];
  function drawNear() {
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.fillStyle = paint.ground;
    ctx.fillRect(0, 0, width, height);
    const k = view.k, left = (-view.x) / k / W - 1, right = (width - view.x) / k / W + 1, top = (-view.y) / k / H - 1, bottom = (height - view.y) / k / H + 1;
    const solid = new Path2D(), dashed = new Path2D();
    for (let e = 0; e < E; e++) {
      const p = edges[5 * e], c = edges[5 * e + 1];
      if (Math.max(ys[p], ys[c]) < top || Math.min(ys[p], ys[c]) > bottom || Math.max(xs[p], xs[c]) < left || Math.min(xs[p], xs[c]) > right) continue;
      const [x0, y0] = place(p), [x1, y1] = place(c), path = parent[c] === p ? solid : dashed;
      path.moveTo(x0, y0);
      if (parent[c] === p && xs[c] > xs[p] && ys[c] > ys[p]) {
        const bus = xs[c] === xs[p] + 1 ? y1 : y1 - H * k / 2;
        path.lineTo(x0, bus); path.lineTo(x1, bus); path.lineTo(x1, y1);
      } else path.bezierCurveTo((x0 + x1) / 2, y0, (x0 + x1) / 2, y1, x1, y1);
    }
    ctx.lineWidth = 1.4; ctx.strokeStyle = paint.soft; ctx.globalAlpha = 0.65; // further parents of merges are fainter
    ctx.stroke(solid);
    ctx.globalAlpha = 0.35; ctx.setLineDash([5, 4]); ctx.stroke(dashed); ctx.globalAlpha = 0.65;
    ctx.setLineDash([1.5, 4]);
    ctx.beginPath();
    for (let i = 0; i < data.kin.length; i += 2) {
      const a = data.kin[i], b = data.kin[i + 1];
      if (Math.max(ys[a], ys[b]) < top || Math.min(ys[a], ys[b]) > bottom) continue;
      const [x0, y0] = place(a), [x1, y1] = place(b), bend = 14 + Math.abs(y1 - y0) / 6;
      ctx.moveTo(x0, y0); ctx.bezierCurveTo(x0 - bend, y0, x1 - bend, y1, x1, y1);
    }
    ctx.stroke(); ctx.setLineDash([]); ctx.globalAlpha = 1;
    const radius = Math.max(3, Math.min(7, 8 * k));
    ctx.font = `${Math.round(11 + 2 * Math.min(1, k))}px system-ui, sans-serif`;
    ctx.textBaseline = "middle";
    for (let i = 0; i < n; i++) {
      if (xs[i] < left || xs[i] > right || ys[i] < top || ys[i] > bottom) continue;
      const [x, y] = place(i);
      ctx.beginPath(); ctx.arc(x, y, radius, 0, 7);
      if (data.kind[i] === MISSING || data.kind[i] === UNDRAWN) {
        ctx.fillStyle = paint.ground; ctx.fill();
        ctx.setLineDash(data.kind[i] === MISSING ? [3, 2] : []); ctx.strokeStyle = colour[i]; ctx.lineWidth = 1.6; ctx.stroke(); ctx.setLineDash([]);
      } else { ctx.fillStyle = colour[i]; ctx.fill(); }
      if (k >= NAMES) {
        ctx.fillStyle = data.kind[i] === MISSING ? paint.soft : paint.ink;
        ctx.fillText(cut(data.names[i], W * k - 22), x + radius + 5, y);
      }
    }
    if (k >= 0.8) for (let e = 0; e < E; e++) {  // shares of merges stand at their ends
      const c = edges[5 * e + 1], share = edges[5 * e + 4];
      if (share < 0 || ys[c] < top || ys[c] > bottom || xs[c] < left || xs[c] > right) continue;
      const [x0, y0] = place(edges[5 * e]), [x1, y1] = place(c);
      ctx.fillStyle = paint.soft;
      ctx.fillText(`${share} %`, x1 - 34 * Math.min(1, k), parent[c] === edges[5 * e] ? y1 - 9 : y1 + (y0 > y1 ? 10 : -20));
    }
  }
  function cut(name, room) {
    const most = Math.max(3, Math.floor(room / 6.2));
    if (name.length <= most) return name;
    const last = name.slice(name.lastIndexOf("/") + 1);
    return last.length <= most ? last : last.slice(0, most - 1 - (most - 1 >> 1)) + "…" + last.slice(last.length - (most - 1 >> 1));
  }
  function ring(i, shade, thick) {
    const [x, y] = place(i);
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.beginPath(); ctx.arc(x, y, Math.max(6, Math.min(11, 12 * view.k)), 0, 7);
    ctx.strokeStyle = shade; ctx.lineWidth = thick; ctx.stroke();
  }
  function label(i) {
    const [x, y] = place(i), text = data.names[i].slice(0, 80);
    ctx.font = "13px system-ui, sans-serif"; ctx.textBaseline = "middle";
    const wide = ctx.measureText(text).width + 12, left = Math.max(4, Math.min(x + 10, width - wide - 4)), top = Math.max(14, y - 18);
    ctx.fillStyle = paint.ground; ctx.strokeStyle = paint.line; ctx.lineWidth = 1;
    ctx.beginPath(); ctx.rect(left, top - 11, wide, 22); ctx.fill(); ctx.stroke();
    ctx.fillStyle = paint.ink; ctx.fillText(text, left + 6, top);
  }

  // What is under the pointer.
  function nearest(x, y) {
    const cx = (x - view.x) / view.k / W, cy = (y - view.y) / view.k / H, reach = Math.min(40, Math.ceil(8 / (H * view.k)));
    let best = -1, least = Infinity;
    for (let u = Math.round(cx) - Math.min(reach, 3); u <= Math.round(cx) + Math.min(reach, 3); u++)
      for (let v = Math.round(cy) - reach; v <= Math.round(cy) + reach; v++) {
        const i = cells.get(cell(u, v));
        if (i === undefined) continue;
        const dx = (u - cx) * W * view.k, dy = (v - cy) * H * view.k, on = view.k >= NAMES && dx <= 0 && -dx < W * view.k - 16 && Math.abs(dy) < H * view.k / 2;
        const far = on ? 0.5 : Math.hypot(dx, dy);
        if (far < least && far < 12) { least = far; best = i; }
      }
    return best;
  }
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect(), i = nearest(event.clientX - box.left, event.clientY - box.top);
    canvas.classList.toggle("is-over", i >= 0);
    if (i !== hovered) { hovered = i; redraw(); }
  });
  canvas.addEventListener("click", event => {
    const box = canvas.getBoundingClientRect(), i = nearest(event.clientX - box.left, event.clientY - box.top);
    const at = i >= 0 ? i : edgeAt(event.clientX - box.left, event.clientY - box.top);
    if (at >= 0) select(at);
  });
  // The child of the line under the pointer: its panel has the evidence for the line.
  function edgeAt(x, y) {
    let best = -1, least = 5;
    const far = (x0, y0, x1, y1) => {
      const dx = x1 - x0, dy = y1 - y0, along = dx || dy ? Math.max(0, Math.min(1, ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy))) : 0;
      return Math.hypot(x - x0 - along * dx, y - y0 - along * dy);
    };
    if (view.k < FAR) return -1;
    for (let e = 0; e < E; e++) {
      const p = edges[5 * e], c = edges[5 * e + 1];
      if (parent[c] !== p) continue;
      const [x0, y0] = place(p), [x1, y1] = place(c), bus = xs[c] === xs[p] + 1 ? y1 : y1 - H * view.k / 2;
      const d = Math.min(far(x0 + 8, bus, x1, bus), far(x1, bus, x1, y1));
      if (d < least) { least = d; best = c; }
    }
    return best;
  }
  async function select(i) {
    selected = i; redraw();
    if (data.kind[i] === MISSING) {
      const p = document.createElement("p");
      p.textContent = "A missing ancestor: the weights of its children call for a common parent that is not enrolled. Children: " + (below.get(i) || []).map(c => data.names[c]).join(", ").slice(0, 600);
      panel.replaceChildren(p);
      return;
    }
    const found = await fetch("/tree/model?" + new URLSearchParams({name: data.names[i]}));
    if (selected !== i) return;
    const html = new DOMParser().parseFromString(await found.text(), "text/html");
    panel.replaceChildren(...html.body.childNodes);
  }
  function central() {  // the model nearest to the middle of what is seen
    const far = i => Math.hypot(place(i)[0] - width / 2, place(i)[1] - height / 2);
    let best = -1, least = Infinity;
    for (let i = 0; i < n; i++) if (far(i) < least) { best = i; least = far(i); }
    return best;
  }
  canvas.addEventListener("keydown", event => {
    const step = 90, move = (x, y) => surface.call(zoom.translateBy, x / view.k, y / view.k);
    const siblings = selected >= 0 && parent[selected] >= 0 ? below.get(parent[selected]) : null;
    const along = d => siblings && select(siblings[(siblings.indexOf(selected) + d + siblings.length) % siblings.length]);
    const keys = {
      ArrowLeft: () => selected >= 0 && parent[selected] >= 0 ? select(parent[selected]) : move(step, 0),
      ArrowRight: () => selected >= 0 && below.has(selected) ? select(below.get(selected)[0]) : move(-step, 0),
      ArrowUp: () => siblings ? along(-1) : move(0, step),
      ArrowDown: () => siblings ? along(1) : move(0, -step),
      "+": () => surface.call(zoom.scaleBy, 1.4), "=": () => surface.call(zoom.scaleBy, 1.4), "-": () => surface.call(zoom.scaleBy, 1 / 1.4),
      0: fit, Escape: () => { selected = -1; redraw(); },
      Enter: () => { if (selected < 0) select(central()); else if (data.kind[selected] !== MISSING) location.href = "/model?" + new URLSearchParams({name: data.names[selected]}); },
    };
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
    if (selected >= 0 && event.key.startsWith("Arrow")) {
      const [x, y] = place(selected);
      if (x < 20 || y < 20 || x > width - 60 || y > height - 20) goTo(selected);
    }
  });
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) { names.replaceChildren(); return; }
    const hits = [];
    for (let i = 0; i < n && hits.length < 20; i++) { const name = data.names[i].toLowerCase(); if (words.every(w => name.includes(w))) hits.push(i); }
    names.replaceChildren(...hits.map(i => new Option(data.names[i], data.names[i])));
    const exact = data.names.indexOf(find.value);
    if (exact >= 0) { select(exact); goTo(exact); }
  });
  find.addEventListener("keydown", event => {
    if (event.key !== "Enter" || !names.firstChild) return;
    const i = data.names.indexOf(names.firstChild.value);
    select(i); goTo(i);
  });
  colourBy.addEventListener("change", () => { choose(); redraw(); });
  document.getElementById("tree-fit").addEventListener("click", fit);
  document.getElementById("tree-in").addEventListener("click", () => surface.call(zoom.scaleBy, 1.4));
  document.getElementById("tree-out").addEventListener("click", () => surface.call(zoom.scaleBy, 1 / 1.4));
  dark.addEventListener("change", () => { palette(); choose(); redraw(); });
  new ResizeObserver(resize).observe(canvas);

  const frames = [];
  palette(); choose(); resize(); fit();
  const asked = new URLSearchParams(location.search).get("select"), wanted = data.names.indexOf(asked);
  if (asked && wanted >= 0) { select(wanted); goTo(wanted); }
  requestAnimationFrame(() => requestAnimationFrame(() => {
    state.textContent = `${n.toLocaleString("en")} models, ${E.toLocaleString("en")} edges`;
    canvas.dataset.ready = String(Math.round(performance.now() - started));
  }));
  window.stemmaTree = {  // what a test asks: places, frames drawn, and what is selected
    place: name => place(data.names.indexOf(name)), frames, goTo: name => goTo(data.names.indexOf(name)),
    selected: () => selected < 0 ? null : data.names[selected], view: () => view,
    panBy: (x, y) => surface.call(zoom.translateBy, x, y), zoomBy: k => surface.call(zoom.scaleBy, k),
  };
});
