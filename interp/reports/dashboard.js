"use strict";
// Unpacks what is looked at and builds every element as text: nothing of the data is ever parsed as HTML.
(async () => {
  const nodes = [...document.querySelectorAll("script.block")];
  const unpack = async (node) => {
    const bytes = Uint8Array.from(atob(node.textContent), (c) => c.charCodeAt(0));
    node.remove();
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).json();
  };
  const data = await unpack(nodes[0]);
  const blocks = nodes.slice(1);
  const unpacked = [];
  const details = async (at) => {
    const b = Math.floor(at / data.block);
    unpacked[b] ??= unpack(blocks[b]);
    return (await unpacked[b])[at % data.block];
  };
  const latents = data.latents.map(([number, firings, max, mean, label, tokens, promoted, suppressed], at) => ({
    number, firings, max, mean, label, tokens, promoted, suppressed, at, density: firings / (data.tokens || 1),
  }));
  const byNumber = new Map(latents.map((l) => [l.number, l]));
  const plain = data.words.map((w) => (Array.isArray(w) ? w.join("") : w).trim().toLowerCase());

  // ------------------------------------------------------------ elements

  const el = (tag, given = {}, ...children) => {
    const svg = ["svg", "rect", "text", "line", "g"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name === "vars") for (const [k, v] of Object.entries(value)) made.style.setProperty(k, v);
      else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((c) => c !== undefined && c !== ""));
    return made;
  };
  const text = (w) => {
    const runs = Array.isArray(data.words[w]) ? data.words[w] : [data.words[w]];
    return runs.map((run, i) => (i % 2 ? el("i", { class: "w" }, run) : run));
  };
  const chip = (w, given = {}) => el("bdi", { ...given, class: `word ${given.class ?? ""}` }, ...text(w));
  const short = (x) => (x === 0 ? "0" : Math.abs(x) >= 1000 ? x.toLocaleString("en", { maximumFractionDigits: 0 })
    : String(Number(x.toPrecision(3))));
  const whole = (n) => n.toLocaleString("en");
  const share = (x) => `${x === 1 ? 100 : x < 1e-3 ? Number((100 * x).toPrecision(2)) : (100 * x).toFixed(x < 0.1 ? 2 : 1)} %`;
  const kept = {
    get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
    set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* a page without storage forgets */ } },
  };

  // ------------------------------------------------------------ labels

  const place = `interp labels: ${data.title}`;
  const own = JSON.parse(kept.get(place) ?? "{}");
  const labelOf = (l) => own[l.number] ?? l.label;
  const relabel = (l, label) => {
    if (label === l.label) delete own[l.number];
    else own[l.number] = label;
    kept.set(place, JSON.stringify(own));
    list.draw(true);
  };
  const exportLabels = () => {
    const rows = latents.filter(labelOf).map((l) => `${l.number},"${labelOf(l).replaceAll('"', '""')}"`);
    const url = URL.createObjectURL(new Blob([["latent,label", ...rows, ""].join("\n")], { type: "text/csv" }));
    el("a", { href: url, download: "labels.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };

  // ------------------------------------------------------------ search and order

  const FIELDS = { any: "anything", on: "fires on", up: "promotes", down: "suppresses", label: "label" };
  const ORDERS = {
    number: ["number", (l) => l.number, (l) => share(l.density), false],
    density: ["density", (l) => l.density, (l) => share(l.density), true],
    max: ["strongest activation", (l) => l.max, (l) => short(l.max), true],
    mean: ["mean activation", (l) => l.mean, (l) => short(l.mean), true],
    focus: ["focus: its first token’s share", (l) => l.tokens[0]?.[1] ?? 0, (l) => share(l.tokens[0]?.[1] ?? 0), true],
    effect: ["largest logit effect", (l) => l.promoted[0]?.[1] ?? 0, (l) => short(l.promoted[0]?.[1] ?? 0), true],
  };
  const state = { query: "", field: "any", order: "number", down: false, current: null, wrapped: kept.get("interp wrapped") === "yes" };

  // How much of a token was asked for: 1 if all of it, less if it only holds what was asked for.
  const likeness = (w, query) => (plain[w].includes(query) ? query.length / plain[w].length : 0);
  const found = (l, query) => {
    const words = new Set();
    const sum = (rows, weight) => rows.reduce((total, row, i) => {
      const like = likeness(row[0], query);
      if (like) words.add(row[0]);
      return total + like * weight(row, i);
    }, 0);
    const ranked = (row, i) => (1 - i / 20) / 4;
    const ways = {
      number: () => (query.replace(/^#/, "") === String(l.number) ? 9 : 0),
      label: () => (labelOf(l).toLowerCase().includes(query) ? 2 : 0),
      on: () => sum(l.tokens, (row) => row[1]),
      up: () => sum(l.promoted, ranked),
      down: () => sum(l.suppressed, ranked),
    };
    const asked = state.field === "any" ? ["number", "label", "on", "up"] : [state.field];
    const scores = asked.map((name) => [ways[name](), FIELDS[name] ?? "number"]);
    const best = scores.reduce((a, b) => (b[0] > a[0] ? b : a));
    return { score: scores.reduce((total, [x]) => total + x, 0), words: [...words], said: best[1] };
  };
  const search = () => {
    const query = state.query.trim().toLowerCase();
    const [, key, said] = ORDERS[state.order];
    const rows = [];
    for (const l of latents) {
      const match = query ? found(l, query) : { score: 1, words: [], said: said(l) };
      if (match.score > 0) rows.push({ l, ...match });
    }
    const sign = state.down ? -1 : 1;
    const order = (a, b) => sign * (key(a.l) - key(b.l)) || a.l.number - b.l.number;
    return rows.sort((a, b) => (query && b.score - a.score) || order(a, b));
  };

  // ------------------------------------------------------------ the list: only the rows in sight exist

  const ROW = 34;
  const first = (l) => {
    const seen = new Set();
    return l.tokens.map((t) => t[0]).filter((w) => !seen.has(plain[w]) && seen.add(plain[w])).slice(0, 4);
  };
  const list = {
    rows: [],
    inner: el("div", { class: "rows" }),
    count: el("p", { class: "count", "aria-live": "polite" }),
    draw(again) {
      if (again) {
        this.rows = search();
        this.inner.style.height = `${ROW * this.rows.length}px`;
        const all = this.rows.length === latents.length;
        this.count.textContent = all ? `${whole(latents.length)} latents` : `${whole(this.rows.length)} of ${whole(latents.length)} latents`;
      }
      const from = Math.max(0, Math.floor(this.outer.scrollTop / ROW) - 5);
      const to = Math.min(this.rows.length, from + Math.ceil((this.outer.clientHeight || 900) / ROW) + 10);
      this.inner.replaceChildren(...this.rows.slice(from, to).map((row, i) => this.row(row, from + i)));
    },
    row({ l, words, said }, i) {
      const label = labelOf(l);
      const chosen = [...new Set([...words, ...first(l)])].slice(0, 4);
      const chips = chosen.map((w) => chip(w, { class: words.includes(w) ? "hit" : "" }));
      const what = label ? [el("b", {}, label)] : chips.length ? chips : [el("i", { class: "w" }, "never fired")];
      return el("a", {
        href: `#latent-${l.number}`, class: "row", "data-at": i, vars: { top: `${ROW * i}px` },
        "aria-current": l === state.current,
      }, el("span", { class: "name" }, String(l.number)), el("span", { class: "what" }, ...what), el("span", { class: "said" }, said));
    },
    where() { return this.rows.findIndex((r) => r.l === state.current); },
    step(by) {
      if (!this.rows.length) return;
      const at = this.where();
      const to = at < 0 ? (by > 0 ? 0 : this.rows.length - 1) : Math.min(this.rows.length - 1, Math.max(0, at + by));
      location.hash = `latent-${this.rows[to].l.number}`;
    },
    reveal() {
      const at = this.where();
      if (at >= 0 && (ROW * at < this.outer.scrollTop || ROW * (at + 1) > this.outer.scrollTop + this.outer.clientHeight)) {
        this.outer.scrollTop = ROW * at - this.outer.clientHeight / 3;
      }
      this.draw(false);
    },
  };
  list.outer = el("nav", { class: "list", "aria-label": "Latents", onscroll: () => list.draw(false) }, list.inner);

  // ------------------------------------------------------------ one latent

  const card = (name, note, ...children) => el("section", { class: "card" }, el("h3", {}, name, note ? el("small", {}, note) : ""), ...children);
  const link = (number) => {
    const l = byNumber.get(number);
    if (!l) return [el("span", { class: "w name" }, String(number)), el("span", { class: "w" }, "not on this page")];
    const what = labelOf(l) ? [el("b", {}, labelOf(l))] : first(l).slice(0, 3).map((w) => chip(w));
    return [el("a", { class: "name", href: `#latent-${number}` }, String(number)), el("span", { class: "what" }, ...what)];
  };
  const bar = (part, said, tip) => el("span", { class: "bar", vars: { "--part": part }, "data-tip": tip }, said);
  const rowsOf = (rows) => el("ol", { class: "pairs" }, ...rows.map((cells) => el("li", {}, ...cells)));

  const histogram = (l, d) => {
    const [width, height, n] = [300, 84, d.histogram.length];
    const step = width / Math.max(n, 1);
    const high = Math.log1p(Math.max(...d.histogram, 1));
    const bars = d.histogram.map((count, i) => {
      const h = count ? Math.max(1.5, (height * Math.log1p(count)) / high) : 0;
      const tip = `${short(d.edges[i])} to ${short(d.edges[i + 1])}: ${whole(count)} firings`;
      return el("g", { "data-tip": tip },
        el("rect", { class: "air", x: step * i, y: 0, width: step, height }),
        el("rect", { x: step * i + 0.5, y: height - h, width: Math.max(0.5, step - 1), height: h }));
    });
    const every = Math.max(1, Math.ceil(n / 5));
    const ticks = d.edges.map((e, i) => [e, i]).filter(([, i]) => i % every === 0);
    const names = ticks.map(([e, i]) => el("text", { x: Math.min(width - 2, Math.max(2, step * i)), y: height + 14,
      "text-anchor": i === 0 ? "start" : i === n ? "end" : "middle" }, short(e)));
    return el("svg", { class: "bars", viewBox: `0 0 ${width} ${height + 18}`, role: "img",
      "aria-label": `histogram of ${l.firings} activations, logarithmic both ways` }, ...bars, ...names);
  };

  const context = ([document_, position, peak, words, levels], l) => {
    const tokens = words.map((w, i) => {
      const level = levels[i] / data.levels;
      const made = el("bdi", level ? { vars: { "--a": level }, "data-tip": short(level * l.max) } : {}, ...text(w));
      if (level) made.classList.add("fires");
      if (i === peak) made.classList.add("peak");
      return made;
    });
    const strength = el("b", { class: "strength", "data-tip": `window ${whole(document_)}, token ${whole(position)}` }, short((levels[peak] / data.levels) * l.max));
    return el("li", { onclick: (e) => e.currentTarget.classList.toggle("whole") }, strength,
      el("p", { dir: "ltr" }, el("span", { class: "before" }, el("span", {}, ...tokens.slice(0, peak))), el("span", { class: "after" }, ...tokens.slice(peak))));
  };
  const contexts = (name, note, rows, l) => card(name, note, el("ol", { class: "contexts" }, ...rows.map((c) => context(c, l))));

  const effects = (l) => {
    const largest = Math.max(...l.promoted.map((p) => p[1]), ...l.suppressed.map((p) => -p[1]), 1e-9);
    const side = (rows) => rowsOf(rows.map(([w, v]) => [chip(w), bar(Math.abs(v) / largest, (v > 0 ? "+" : "−") + short(Math.abs(v)), `${short(v)} logits for each unit of activation`)]));
    return el("div", { class: "sides" }, el("div", {}, el("h4", {}, "Promotes"), side(l.promoted)), el("div", {}, el("h4", {}, "Suppresses"), side(l.suppressed)));
  };

  // Where the latent stands in the list as it is, with the ways to its neighbours there.
  const steps = el("span", { class: "go" });
  const drawSteps = () => {
    const at = list.where();
    const go = (by, sign, name) => el("button", { type: "button", onclick: () => list.step(by), "aria-label": name, disabled: !list.rows[at < 0 ? 0 : at + by] }, sign);
    steps.replaceChildren(go(-1, "‹", "previous latent"), el("small", {}, at < 0 ? "not in the list" : `${whole(at + 1)} of ${whole(list.rows.length)}`), go(1, "›", "next latent"));
  };
  const heading = (l) => {
    drawSteps();
    const input = el("input", { class: "label", value: labelOf(l), placeholder: "add a label", "aria-label": "label of this latent", oninput: (e) => relabel(l, e.target.value.trim()) });
    const numbers = [["density", share(l.density)], ["firings", whole(l.firings)], ["strongest", short(l.max)], ["mean", short(l.mean)]];
    return el("header", { class: "heading" },
      el("div", {}, el("a", { class: "back", href: "#" }, "‹ list"), el("h2", {}, `Latent ${l.number}`), input,
        steps),
      el("dl", {}, ...numbers.map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v)))));
  };

  const showLatent = async (l) => {
    const d = await details(l.at);
    if (state.current !== l) return;
    const ranges = d.strata.map(([low, high, n], i) => [
      el("button", { type: "button", class: "plain", onclick: () => main.querySelector(`.stratum-${i}`).scrollIntoView() }, `${short(low)} to ${short(high)}`),
      bar(n / l.firings, share(n / l.firings), `${whole(n)} firings`)]);
    const cards = [card("Activations", "both axes logarithmic", histogram(l, d), rowsOf(ranges))];
    if (l.tokens.length) cards.push(card("Fires on", "share of activation · of the token", rowsOf(l.tokens.map(([w, s, n, there]) => [
      chip(w), bar(s, share(s), `${share(s)} of the latent’s activation`), el("span", { class: "beside", "data-tip": `fires on ${whole(n)} of ${whole(there)}` }, share(n / there))]))));
    if (l.promoted.length) cards.push(card("Logits", "direct path, a unit of activation", effects(l)));
    const pair = [];
    if (d.partners.length) pair.push(card("Fires with", "correlation φ", rowsOf(d.partners.map(([n, both, phi]) => [
      ...link(n), bar(phi, phi.toFixed(2), `together on ${whole(both)} tokens, ${share(both / l.firings)} of this latent’s firings`)]))));
    if (d.neighbours.length) pair.push(card("Nearest decoder rows", "cosine", rowsOf(d.neighbours.map(([n, c]) => [
      ...link(n), bar(Math.max(0, c), c.toFixed(2), `cosine ${c}`)]))));
    const parts = l.firings ? [contexts("Strongest", "", d.top, l)] : [card("Never fired", "", el("p", {}, `Not once on the ${whole(data.tokens)} tokens of this text.`))];
    parts.push(el("div", { class: "cards two" }, ...pair));
    d.strata.forEach(([low, high, n, drawn], i) => {
      const made = contexts(`${short(low)} to ${short(high)}`, `drawn at random from ${share(n / l.firings)} of the firings`, drawn, l);
      made.classList.add(`stratum-${i}`);
      parts.push(made);
    });
    const switcher = el("button", { type: "button", class: "switch", onclick: wrap }, state.wrapped ? "align" : "wrap");
    main.replaceChildren(heading(l), el("div", { class: "cards" }, ...cards), el("div", { class: "tools" }, scale(), switcher), ...parts);
  };
  const scale = () => el("span", { class: "key" }, "0 ", ...[...Array(10).keys()].map((i) => el("bdi", { class: "fires", vars: { "--a": (i + 1) / 10 } }, "\u00a0")), " the latent’s strongest");
  const wrap = () => {
    state.wrapped = !state.wrapped;
    kept.set("interp wrapped", state.wrapped ? "yes" : "no");
    document.body.classList.toggle("wrapped", state.wrapped);
    const button = document.querySelector(".switch");
    if (button) button.textContent = state.wrapped ? "align" : "wrap";
  };

  // ------------------------------------------------------------ the first page

  const densities = () => {
    const [[dead], ...bins] = data.fired;
    const height = 160;
    const [low, high] = bins.length ? [bins[0][0], bins[bins.length - 1][0] + 0.25] : [-1, 0];
    const step = 300 / Math.max(1, Math.round((high - low) * 4));
    const most = Math.max(1, ...bins.map((b) => b[1]));
    const bars = bins.map(([place, n]) => {
      const h = Math.max(1.5, (height * n) / most);
      return el("g", { "data-tip": `density ${share(10 ** place)} to ${share(10 ** (place + 0.25))}: ${whole(n)} latents` },
        el("rect", { class: "air", x: (place - low) * 4 * step, y: 0, width: step, height }),
        el("rect", { x: (place - low) * 4 * step + 0.5, y: height - h, width: Math.max(0.5, step - 1), height: h }));
    });
    const decades = [];
    for (let p = Math.ceil(low); p <= high; p += 1) decades.push(el("text", { x: (p - low) * 4 * step, y: height + 14, "text-anchor": p === low ? "start" : p === high ? "end" : "middle" }, `${Number((100 * 10 ** p).toPrecision(2))} %`));
    return card("Densities", `whole dictionary; ${whole(dead)} never fired`, el("svg", { class: "bars", viewBox: `0 0 300 ${height + 18}`, role: "img", "aria-label": "histogram of densities" }, ...bars, ...decades));
  };
  const map = () => {
    const canvas = el("canvas", { class: "map", role: "img", "aria-label": "density against strongest activation, a point a latent" });
    const alive = latents.filter((l) => l.firings);
    const spread = (f) => { const v = alive.map(f); const [a, b] = [Math.min(...v), Math.max(...v)]; return (l) => (b > a ? (f(l) - a) / (b - a) : 0.5); };
    const [x, y] = [spread((l) => Math.log(l.density)), spread((l) => Math.log(l.max))];
    const at = (l) => [14 + x(l) * (canvas.clientWidth - 28), 14 + (1 - y(l)) * (canvas.clientHeight - 28)];
    const draw = () => {
      const dots = canvas.getContext("2d");
      const zoom = devicePixelRatio || 1;
      canvas.width = canvas.clientWidth * zoom;
      canvas.height = canvas.clientHeight * zoom;
      dots.scale(zoom, zoom);
      dots.fillStyle = getComputedStyle(canvas).color;
      dots.globalAlpha = Math.max(0.25, Math.min(0.8, 300 / alive.length));
      for (const l of alive) { const [a, b] = at(l); dots.beginPath(); dots.arc(a, b, 3, 0, 7); dots.fill(); }
    };
    const nearest = (e) => {
      const [a, b] = [e.offsetX, e.offsetY];
      let [best, far] = [null, 400];
      for (const l of alive) { const [p, q] = at(l); const d = (p - a) ** 2 + (q - b) ** 2; if (d < far) [best, far] = [l, d]; }
      return best;
    };
    canvas.addEventListener("pointermove", (e) => {
      const l = nearest(e);
      canvas.style.cursor = l ? "pointer" : "default";
      tell(e, l ? `${l.number}: ${labelOf(l) || first(l).map((w) => plain[w]).join("  ")}` : "");
    });
    canvas.addEventListener("click", (e) => { const l = nearest(e); if (l) location.hash = `latent-${l.number}`; });
    redraw = draw;
    new ResizeObserver(draw).observe(canvas);
    return card("Density and strength", "to the right: more often; upwards: more strongly", canvas);
  };
  const keys = [["← →  or  k j", "previous, next latent of the list"], ["/", "search"], ["w", "align or wrap contexts"], ["o", "this overview"], ["d", "light or dark"]];
  const showOverview = () => {
    const facts = el("dl", {}, ...Object.entries(data.facts).map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v))));
    const help = el("dl", {}, ...keys.map(([k, v]) => el("div", {}, el("dt", {}, el("kbd", {}, k)), el("dd", {}, v))));
    main.replaceChildren(
      el("header", { class: "heading" }, el("div", {}, el("a", { class: "back", href: "#" }, "‹ list"), el("h2", {}, data.title))),
      el("div", { class: "cards two" }, map(), densities()),
      el("section", { class: "card facts" }, el("h3", {}, "What was run"), facts),
      el("section", { class: "card facts keys" }, el("h3", {}, "Keys"), help));
  };
  let redraw = () => {};

  // ------------------------------------------------------------ around it

  const tip = el("div", { class: "tip", role: "status", hidden: true });
  const tell = (e, said) => {
    tip.hidden = !said;
    tip.textContent = said;
    const [w, h] = [tip.offsetWidth, tip.offsetHeight];
    tip.style.left = `${Math.max(4, Math.min(innerWidth - w - 4, e.clientX - w / 2))}px`;
    tip.style.top = `${e.clientY > h + 16 ? e.clientY - h - 12 : e.clientY + 18}px`;
  };
  addEventListener("pointerover", (e) => {
    const about = e.target.closest?.("[data-tip]");
    if (e.target.tagName !== "CANVAS") tell(e, about ? about.dataset.tip : "");
  });
  addEventListener("scroll", () => { tip.hidden = true; }, true);

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.style.colorScheme || (dark.matches ? "dark" : "light")) === "dark";
  const paint = (scheme) => { document.documentElement.style.colorScheme = scheme ?? ""; redraw(); };
  const flip = () => { paint(isDark() ? "light" : "dark"); kept.set("interp theme", isDark() ? "dark" : "light"); };
  dark.addEventListener("change", () => redraw());

  const again = () => { list.outer.scrollTop = 0; list.draw(true); drawSteps(); };
  const box = el("input", { type: "search", id: "search", placeholder: "token, number or label", "aria-label": "search latents", autocomplete: "off", spellcheck: "false",
    oninput: (e) => { state.query = e.target.value; again(); } });
  const options = (rows) => Object.entries(rows).map(([k, v]) => el("option", { value: k }, Array.isArray(v) ? v[0] : v));
  const field = el("select", { "aria-label": "search in", onchange: (e) => { state.field = e.target.value; again(); } }, ...options(FIELDS));
  const arrow = el("button", { type: "button", "aria-label": "turn the order around", onclick: () => { state.down = !state.down; sorted(); } }, "↑");
  const sorted = () => { arrow.textContent = state.down ? "↓" : "↑"; again(); };
  const order = el("select", { "aria-label": "sort by", onchange: (e) => { state.order = e.target.value; state.down = ORDERS[state.order][3]; sorted(); } }, ...options(ORDERS));
  const main = el("main", { tabindex: "-1" });
  const aside = el("aside", {},
    el("div", { class: "find" }, box, field), el("div", { class: "find" }, el("label", {}, "sort ", order), arrow, list.count), list.outer);
  const top = el("header", { class: "top" }, el("a", { class: "title", href: "#overview" }, data.title), el("span", { class: "buttons" },
    el("a", { href: "#overview", class: "button" }, "overview"), el("button", { type: "button", onclick: exportLabels }, "save labels"),
    el("button", { type: "button", onclick: flip, "aria-label": "light or dark" }, "◐")));

  const show = async () => {
    const match = /^#latent-(\d+)$/.exec(location.hash);
    const l = match && byNumber.get(Number(match[1]));
    state.current = l || null;
    document.body.dataset.view = l ? "latent" : location.hash === "#overview" || match ? "overview" : "list";
    redraw = () => {};
    tip.hidden = true;
    list.reveal();
    if (l) await showLatent(l);
    else showOverview();
    if (match && !l) main.prepend(el("p", { class: "card" }, `Latent ${match[1]} is not on this page.`));
    scrollTo(0, 0);
    document.title = l ? `Latent ${l.number} · ${data.title}` : data.title;
  };

  const pressed = { j: () => list.step(1), k: () => list.step(-1), ArrowRight: () => list.step(1), ArrowLeft: () => list.step(-1),
    "/": () => { box.focus(); box.select(); }, w: wrap, o: () => { location.hash = "overview"; }, d: flip };
  addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const typing = ["INPUT", "SELECT"].includes(e.target.tagName);
    if (typing && e.key === "Escape") { if (e.target === box) { box.value = state.query = ""; again(); } e.target.blur(); }
    if (e.target === box && ["Enter", "ArrowDown", "ArrowUp"].includes(e.key)) { e.preventDefault(); list.step(e.key === "ArrowUp" ? -1 : 1); }
    if (typing || !pressed[e.key]) return;
    e.preventDefault();
    pressed[e.key]();
  });

  paint(kept.get("interp theme"));
  document.body.classList.toggle("wrapped", state.wrapped);
  document.body.append(top, el("div", { class: "columns" }, aside, main), tip);
  list.draw(true);
  addEventListener("hashchange", show);
  addEventListener("resize", () => list.draw(false));
  await show();
  document.body.dataset.ready = "yes";
})().catch((error) => {
  document.body.append(`This page could not be unpacked: ${error}. It needs a browser of 2023 or later.`);
});
