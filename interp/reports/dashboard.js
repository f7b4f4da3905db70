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
  const LABELS = {  // what `interp dashboard --labels` reads
    csv: (own) => ["latent,label", ...own.map(([n, label]) => `${n},"${label.replaceAll('"', '""')}"`), ""].join("\n"),
    json: (own) => `${JSON.stringify(Object.fromEntries(own), null, 1)}\n`,
  };
  const exportLabels = (kind) => {
    const text = LABELS[kind](latents.filter(labelOf).map((l) => [l.number, labelOf(l)]));
    const url = URL.createObjectURL(new Blob([text], { type: kind === "csv" ? "text/csv" : "application/json" }));
    el("a", { href: url, download: `labels.${kind}` }).click();
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
  const state = {
    query: "", field: "any", order: "number", down: false, current: null, wrapped: kept.get("interp wrapped") === "yes",
  };

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
        this.count.textContent = `${all ? "" : `${whole(this.rows.length)} of `}${whole(latents.length)} latents`;
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
      }, ...[["name", [String(l.number)]], ["what", what], ["said", [said]]].map(([k, c]) => el("span", { class: k }, ...c)));
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
      const { scrollTop, clientHeight } = this.outer;
      const inSight = ROW * at >= scrollTop && ROW * (at + 1) <= scrollTop + clientHeight;
      if (at >= 0 && !inSight) this.outer.scrollTop = ROW * at - clientHeight / 3;
      this.draw(false);
    },
  };
  list.outer = el("nav", { class: "list", "aria-label": "Latents", onscroll: () => list.draw(false) }, list.inner);

  // ------------------------------------------------------------ one latent

  const card = (name, note, ...children) =>
    el("section", { class: "card" }, el("h3", {}, name, note ? el("small", {}, note) : ""), ...children);
  const rowsOf = (rows) => el("ol", { class: "pairs" }, ...rows.map((cells) => el("li", {}, ...cells)));
  const bar = (part, said, tip) => el("span", { class: "bar", vars: { "--part": part }, "data-tip": tip }, said);
  const link = (number) => {
    const l = byNumber.get(number);
    if (!l) return [el("span", { class: "w name" }, String(number)), el("span", { class: "w" }, "not on this page")];
    const what = labelOf(l) ? [el("b", {}, labelOf(l))] : first(l).slice(0, 3).map((w) => chip(w));
    return [el("a", { class: "name", href: `#latent-${number}` }, String(number)), el("span", { class: "what" }, ...what)];
  };

  // Bars of [height in 0 to 1, what is said of it], over an axis of [place in 0 to 1, name].
  const chart = (label, height, bars, axis) => {
    const width = 300;
    const step = width / Math.max(bars.length, 1);
    const shapes = bars.map(([part, tip], i) => {
      const h = part ? Math.max(1.5, height * part) : 0;
      return el("g", { "data-tip": tip },
        el("rect", { class: "air", x: step * i, y: 0, width: step, height }),
        el("rect", { x: step * i + 0.5, y: height - h, width: Math.max(0.5, step - 1), height: h }));
    });
    const names = axis.map(([at, name]) => {
      const anchor = at === 0 ? "start" : at === 1 ? "end" : "middle";
      return el("text", { x: width * at, y: height + 14, "text-anchor": anchor }, name);
    });
    const given = { class: "bars", viewBox: `0 0 ${width} ${height + 18}`, role: "img", "aria-label": label };
    return el("svg", given, ...shapes, ...names);
  };
  const histogram = (l, d) => {
    const n = d.histogram.length;
    const high = Math.log1p(Math.max(...d.histogram, 1));
    const tip = (i) => `${short(d.edges[i])} to ${short(d.edges[i + 1])}: ${whole(d.histogram[i])} firings`;
    const every = Math.max(1, Math.ceil(n / 5));
    const axis = d.edges.map((e, i) => [i / n, short(e)]).filter((_, i) => n && i % every === 0);
    const label = `histogram of ${l.firings} activations, logarithmic both ways`;
    return chart(label, 84, d.histogram.map((count, i) => [Math.log1p(count) / high, tip(i)]), axis);
  };

  const context = ([text_, position, peak, words, levels], l) => {
    const strength = (level) => short((level / data.levels) * l.max);
    const tokens = words.map((w, i) => {
      const given = levels[i] ? { vars: { "--a": levels[i] / data.levels }, "data-tip": strength(levels[i]) } : {};
      return el("bdi", { ...given, class: `${levels[i] ? "fires" : ""} ${i === peak ? "peak" : ""}` }, ...text(w));
    });
    const where = { class: "strength", "data-tip": `window ${whole(text_)}, token ${whole(position)}` };
    return el("li", { onclick: (e) => e.currentTarget.classList.toggle("whole") },
      el("b", where, strength(levels[peak])),
      el("p", { dir: "ltr" },
        el("span", { class: "before" }, el("span", {}, ...tokens.slice(0, peak))),
        el("span", { class: "after" }, ...tokens.slice(peak))));
  };
  const contexts = (name, note, rows, l) =>
    card(name, note, el("ol", { class: "contexts" }, ...rows.map((c) => context(c, l))));

  // Where the latent stands in the list as it is, with the ways to its neighbours there.
  const steps = el("span", { class: "go" });
  const drawSteps = () => {
    const at = list.where();
    const go = (by, sign, name) => {
      const given = { type: "button", onclick: () => list.step(by), "aria-label": name };
      return el("button", { ...given, disabled: !list.rows[at < 0 ? 0 : at + by] }, sign);
    };
    const said = at < 0 ? "not in the list" : `${whole(at + 1)} of ${whole(list.rows.length)}`;
    steps.replaceChildren(go(-1, "‹", "previous latent"), el("small", {}, said), go(1, "›", "next latent"));
  };
  const back = () => el("a", { class: "back", href: "#" }, "‹ list");
  const heading = (l) => {
    drawSteps();
    const numbers = { density: share(l.density), firings: whole(l.firings), strongest: short(l.max), mean: short(l.mean) };
    const input = el("input", {
      class: "label", value: labelOf(l), placeholder: "add a label", "aria-label": "label of this latent",
      oninput: (e) => relabel(l, e.target.value.trim()),
    });
    return el("header", { class: "heading" },
      el("div", {}, back(), el("h2", {}, `Latent ${l.number}`), input, steps),
      el("dl", {}, ...Object.entries(numbers).map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v)))));
  };

  const activations = (l, d) => {
    const show = (i) => main.querySelector(`.stratum-${i}`).scrollIntoView();
    const ranges = d.strata.map(([low, high, n], i) => [
      el("button", { type: "button", class: "plain", onclick: () => show(i) }, `${short(low)} to ${short(high)}`),
      bar(n / l.firings, share(n / l.firings), `${whole(n)} firings`),
    ]);
    return card("Activations", "both axes logarithmic", histogram(l, d), rowsOf(ranges));
  };
  const firesOn = (l) => card("Fires on", "share of activation · of the token", rowsOf(l.tokens.map(([w, part, n, there]) => [
    chip(w),
    bar(part, share(part), `${share(part)} of the latent’s activation`),
    el("span", { class: "beside", "data-tip": `fires on ${whole(n)} of ${whole(there)}` }, share(n / there)),
  ])));
  const logits = (l) => {
    const said = (v) => (v > 0 ? "+" : "−") + short(Math.abs(v));
    const side = (name, rows) => el("div", {}, el("h4", {}, name),
      rowsOf(rows.map(([w, v]) => [chip(w), bar(0, said(v), `${said(v)} logits for each unit of activation`)])));
    return card("Logits", "direct path, a unit of activation",
      el("div", { class: "sides" }, side("Promotes", l.promoted), side("Suppresses", l.suppressed)));
  };
  const partners = (l, d) => card("Fires with", "correlation φ", rowsOf(d.partners.map(([n, both, phi]) => [
    ...link(n),
    bar(phi, phi.toFixed(2), `together on ${whole(both)} tokens, ${share(both / l.firings)} of this latent’s firings`),
  ])));
  const neighbours = (d) => card("Nearest decoder rows", "cosine", rowsOf(d.neighbours.map(([n, cosine]) => [
    ...link(n), bar(Math.max(0, cosine), cosine.toFixed(2), `cosine ${cosine}`),
  ])));

  const wrap = () => {
    state.wrapped = !state.wrapped;
    kept.set("interp wrapped", state.wrapped ? "yes" : "no");
    document.body.classList.toggle("wrapped", state.wrapped);
    const button = document.querySelector(".switch");
    if (button) button.textContent = state.wrapped ? "align" : "wrap";
  };
  const tools = () => {
    const shades = [...Array(10).keys()].map((i) => el("bdi", { class: "fires", vars: { "--a": (i + 1) / 10 } }, "\u00a0"));
    return el("div", { class: "tools" },
      el("span", { class: "key" }, "0 ", ...shades, " the latent’s strongest"),
      el("button", { type: "button", class: "switch", onclick: wrap }, state.wrapped ? "align" : "wrap"));
  };

  const showLatent = async (l) => {
    const d = await details(l.at);
    if (state.current !== l) return;
    const cards = [activations(l, d), l.tokens.length && firesOn(l), l.promoted.length && logits(l)];
    const pair = [d.partners.length && partners(l, d), d.neighbours.length && neighbours(d)];
    const strongest = l.firings ? contexts("Strongest", "", d.top, l)
      : card("Never fired", "", el("p", {}, `Not once on the ${whole(data.tokens)} tokens of this text.`));
    const strata = d.strata.map(([low, high, n, drawn], i) => {
      const note = `drawn at random from ${share(n / l.firings)} of the firings`;
      const made = contexts(`${short(low)} to ${short(high)}`, note, drawn, l);
      made.classList.add(`stratum-${i}`);
      return made;
    });
    main.replaceChildren(heading(l), el("div", { class: "cards" }, ...cards.filter(Boolean)), tools(), strongest,
      el("div", { class: "cards two" }, ...pair.filter(Boolean)), ...strata);
  };

  // ------------------------------------------------------------ the first page

  const densities = () => {
    const [[dead], ...found] = data.fired;
    const counts = new Map(found);
    const places = [];
    if (found.length) for (let p = found[0][0]; p <= found[found.length - 1][0]; p += 0.25) places.push(p);
    const most = Math.max(1, ...counts.values());
    const bars = places.map((p) => {
      const n = counts.get(p) ?? 0;
      return [n / most, `density ${share(10 ** p)} to ${share(10 ** (p + 0.25))}: ${whole(n)} latents`];
    });
    const axis = [...places, places[places.length - 1] + 0.25].map((p, i) => [p, i / places.length])
      .filter(([p]) => Number.isInteger(p)).map(([p, at]) => [at, `${Number((100 * 10 ** p).toPrecision(2))} %`]);
    return card("Densities", `whole dictionary; ${whole(dead)} never fired`, chart("histogram of densities", 160, bars, axis));
  };

  // Every latent as a point that can be picked.
  const map = () => {
    const label = "density against strongest activation, a point a latent";
    const canvas = el("canvas", { class: "map", role: "img", "aria-label": label });
    const alive = latents.filter((l) => l.firings);
    const spread = (f) => {
      const [low, high] = alive.reduce(([a, b], l) => [Math.min(a, f(l)), Math.max(b, f(l))], [Infinity, -Infinity]);
      return (l) => (high > low ? (f(l) - low) / (high - low) : 0.5);
    };
    const [x, y] = [spread((l) => Math.log(l.density)), spread((l) => Math.log(l.max))];
    const edge = 14;
    const at = (l) => [edge + x(l) * (canvas.clientWidth - 2 * edge), edge + (1 - y(l)) * (canvas.clientHeight - 2 * edge)];
    redraw = () => {
      const dots = canvas.getContext("2d");
      const zoom = devicePixelRatio || 1;
      canvas.width = canvas.clientWidth * zoom;
      canvas.height = canvas.clientHeight * zoom;
      dots.scale(zoom, zoom);
      dots.fillStyle = getComputedStyle(canvas).color;
      dots.globalAlpha = Math.max(0.25, Math.min(0.8, 300 / alive.length));
      for (const l of alive) {
        dots.beginPath();
        dots.arc(...at(l), 3, 0, 7);
        dots.fill();
      }
    };
    const nearest = (e) => {
      const far = alive.map((l) => [Math.hypot(at(l)[0] - e.offsetX, at(l)[1] - e.offsetY), l]);
      const [distance, l] = far.reduce((a, b) => (b[0] < a[0] ? b : a), [20, null]);
      return distance < 20 ? l : null;
    };
    canvas.addEventListener("pointermove", (e) => {
      const l = nearest(e);
      canvas.style.cursor = l ? "pointer" : "default";
      tell(e, l ? `${l.number}: ${labelOf(l) || first(l).map((w) => plain[w]).join("  ")}` : "");
    });
    canvas.addEventListener("click", (e) => {
      const l = nearest(e);
      if (l) location.hash = `latent-${l.number}`;
    });
    new ResizeObserver(() => redraw()).observe(canvas);
    return card("Density and strength", "to the right: more often; upwards: more strongly", canvas);
  };
  let redraw = () => {};

  const KEYS = {
    "← →  or  k j": "previous, next latent of the list", "/": "search", "w": "align or wrap contexts",
    "o": "this overview", "d": "light or dark",
  };
  const showOverview = () => {
    const row = (name, said) => el("div", {}, el("dt", {}, name), el("dd", {}, said));
    const facts = Object.entries(data.facts).map(([k, v]) => row(k, v));
    const keys = Object.entries(KEYS).map(([k, v]) => row(el("kbd", {}, k), v));
    main.replaceChildren(
      el("header", { class: "heading" }, el("div", {}, back(), el("h2", {}, data.title))),
      el("div", { class: "cards two" }, map(), densities()),
      el("section", { class: "card facts" }, el("h3", {}, "What was run"), el("dl", {}, ...facts)),
      el("section", { class: "card facts" }, el("h3", {}, "Keys"), el("dl", {}, ...keys)));
  };

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
  const paint = (scheme) => {
    document.documentElement.style.colorScheme = scheme ?? "";
    redraw();
  };
  const flip = () => {
    paint(isDark() ? "light" : "dark");
    kept.set("interp theme", isDark() ? "dark" : "light");
  };
  dark.addEventListener("change", () => redraw());

  const again = () => {
    list.outer.scrollTop = 0;
    list.draw(true);
    drawSteps();
  };
  const box = el("input", {
    type: "search", id: "search", placeholder: "token, number or label", "aria-label": "search latents", autocomplete: "off",
    spellcheck: "false", oninput: (e) => { state.query = e.target.value; again(); },
  });
  const choice = (name, rows, chosen) => {
    const options = Object.entries(rows).map(([k, v]) => el("option", { value: k }, Array.isArray(v) ? v[0] : v));
    return el("select", { "aria-label": name, onchange: (e) => { chosen(e.target.value); again(); } }, ...options);
  };
  const turn = (down) => {
    state.down = down;
    arrow.textContent = down ? "↓" : "↑";
    again();
  };
  const around = { type: "button", "aria-label": "turn the order around", onclick: () => turn(!state.down) };
  const arrow = el("button", around, "↑");
  const field = choice("search in", FIELDS, (name) => { state.field = name; });
  const order = choice("sort by", ORDERS, (name) => { state.order = name; turn(ORDERS[name][3]); });
  const main = el("main", { tabindex: "-1" });
  const aside = el("aside", {}, el("div", { class: "find" }, box, field),
    el("div", { class: "find" }, el("label", {}, "sort ", order), arrow, list.count), list.outer);
  const top = el("header", { class: "top" }, el("a", { class: "title", href: "#overview" }, data.title),
    el("span", { class: "buttons" }, el("a", { href: "#overview", class: "button" }, "overview"),
      el("button", { type: "button", onclick: () => exportLabels("csv") }, "save labels"),
      el("button", { type: "button", onclick: () => exportLabels("json") }, "as JSON"),
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

  const [next, previous] = [() => list.step(1), () => list.step(-1)];
  const pressed = {
    j: next, k: previous, ArrowRight: next, ArrowLeft: previous, w: wrap, d: flip,
    "/": () => { box.focus(); box.select(); }, o: () => { location.hash = "overview"; },
  };
  addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const typing = ["INPUT", "SELECT"].includes(e.target.tagName);
    if (typing && e.key === "Escape") e.target.blur();
    if (e.target === box && e.key === "Escape") {
      box.value = state.query = "";
      again();
    }
    if (e.target === box && ["Enter", "ArrowDown", "ArrowUp"].includes(e.key)) {
      e.preventDefault();
      list.step(e.key === "ArrowUp" ? -1 : 1);
    }
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
