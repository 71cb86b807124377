/* Draws the charts of the page from the data in it, when they scroll into view. Nothing is fetched. */
(function () {
  "use strict";

  const page = JSON.parse(document.getElementById("page-data").textContent);
  const shown = new Set(page.shown);
  const charts = [];
  // Without perspective, equal heights look equal in every panel.
  const CAMERA = { eye: { x: 1.5, y: -1.5, z: 1.0 }, center: { x: 0, y: 0, z: -0.05 }, up: { x: 0, y: 0, z: 1 }, projection: { type: "orthographic" } };

  // ------------------------------------------------------------------------------------------ data

  const TYPES = { f4: Float32Array, f8: Float64Array, i4: Int32Array, i2: Int16Array, u1: Uint8Array };

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  function decode(column) {
    if (Array.isArray(column)) return { values: column, shape: [column.length] };
    if (column.fill !== undefined) {
      const total = column.shape.reduce((a, b) => a * b, 1);
      return { values: new Array(total).fill(column.fill === null ? NaN : column.fill), shape: column.shape };
    }
    const values = new TYPES[column.dtype](bytes(column.base64).buffer);
    if (column.step === undefined) return { values, shape: column.shape };
    // 16 bits between the smallest and the largest; the lowest code is a hole.
    return { values: Float64Array.from(values, (v) => (v === -32768 ? NaN : column.zero + column.step * v)), shape: column.shape };
  }

  /* The data of a chart: JSON as it is, or, where that is long, packed. */
  function dataOf(id) {
    const element = document.getElementById("data-" + id);
    return element.type === "application/json" ? JSON.parse(element.textContent) : unpacked(element).then(JSON.parse);
  }

  function unpacked(element) {
    const stream = new Blob([bytes(element.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // Large pages hold Plotly packed, too; its text was made with the page, as every other script of it.
  const packedPlotly = document.getElementById("plotly");
  const ready = packedPlotly ? unpacked(packedPlotly).then((text) => void (0, eval)(text)) : Promise.resolve();

  function short(value) {
    if (!Number.isFinite(value)) return String(value);
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(4)));
  }

  function forward(scale) {
    if (!scale) return (v) => (Number.isFinite(v) ? v : null);
    if (scale[0] === "log") return (v) => (Number.isFinite(v) && v > 0 ? Math.log10(v) : null);
    return (v) => (Number.isFinite(v) ? Math.asinh(v / scale[1]) : null);
  }

  function column(chart, spec) {
    const name = spec.ref[1] === "@axis" ? chart.choice("axis") : spec.ref[1];
    const { values, shape } = chart.columns[spec.ref[0]][name];
    const known = spec.power ? (v) => short(10 ** v) : spec.text ? short : spec.plain ? plain : typeof values[0] === "string" ? (v) => v : forward(spec.scale);
    const map = spec.above === undefined ? known : (v) => known(v - spec.above);
    if (shape.length < 2) return Array.from(values, map);
    const [rows, cols] = shape;
    const at = (i, j) => map(values[i * cols + j]);
    return spec.transpose
      ? Array.from({ length: cols }, (_, j) => Array.from({ length: rows }, (_, i) => at(i, j)))
      : Array.from({ length: rows }, (_, i) => Array.from({ length: cols }, (_, j) => at(i, j)));
  }

  function color(name, alpha) {
    const hex = getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
    if (alpha === undefined) return hex;
    const part = (k) => parseInt(hex.slice(k, k + 2), 16);
    return `rgba(${part(1)},${part(3)},${part(5)},${alpha})`;
  }

  function resolve(chart, node) {
    if (Array.isArray(node)) return node.map((n) => resolve(chart, n));
    if (node === null || typeof node !== "object") return node;
    if (node.ref) return column(chart, node);
    if (node.css) return color(node.css, node.alpha);
    if (node.hue !== undefined) return color(looks.hue(node.hue), node.alpha);
    if (node.symbol_of !== undefined) return looks.symbol(node.symbol_of) + (node.open ? "-open" : "");
    if (node.dash_of !== undefined) return looks.dash(node.dash_of);
    if (node.pick) return node.of[chart.choice(node.pick)];
    if (node.minus) {
      const [a, b] = node.minus.map((n) => column(chart, n));
      return a.map((v, i) => (v === null || b[i] === null ? null : v - b[i]));
    }
    if (node.choose) {
      const [yes, no] = [node.yes, node.no].map((n) => resolve(chart, n));
      return column(chart, { ref: node.choose }).map((v) => (v ? yes : no));
    }
    if (node.row !== undefined) return new Array(node.times).fill(chart.rowRuns().indexOf(node.row));
    return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, resolve(chart, v)]));
  }

  /* How runs look: those that are drawn differ in color, and, where there are more of them, in shape and dashes too.
     A run keeps its look while it is drawn; one that isn't has none. */
  const looks = {
    places: new Map(),
    shapes: document.getElementById("swatches").content.children,

    assign() {
      const places = this.places;
      for (const run of [...places.keys()]) if (!shown.has(run)) places.delete(run);
      const taken = new Set(places.values());
      for (const run of [...shown].sort((a, b) => a - b)) {
        if (places.has(run)) continue;
        let place = run % page.hues;
        if (taken.has(place)) for (place = 0; taken.has(place); ) place++;
        places.set(run, place);
        taken.add(place);
      }
      document.querySelectorAll(".swatch[data-run]").forEach((svg) => this.dress(svg, Number(svg.dataset.run)));
    },

    dress(svg, run) {
      const place = this.places.get(run);
      svg.setAttribute("class", "swatch " + (place === undefined ? "undrawn" : "hue-" + (place % page.hues)));
      svg.firstElementChild.setAttribute("d", this.shapes[this.shape(run)].firstElementChild.getAttribute("d"));
      return svg;
    },

    swatch(run) {
      const svg = this.shapes[0].cloneNode(true);
      svg.dataset.run = run;
      return this.dress(svg, run);
    },

    round: (place) => Math.floor(place / page.hues),
    place(run) {
      return this.places.has(run) ? this.places.get(run) : run;
    },
    hue(run) {
      return this.places.has(run) ? "hue-" + (this.places.get(run) % page.hues) : "line";
    },
    shape(run) {
      const place = this.place(run);
      return (place + this.round(place)) % page.symbols.length;
    },
    symbol(run) {
      return page.symbols[this.shape(run)];
    },
    dash(run) {
      return page.dashes[this.round(this.place(run)) % page.dashes.length];
    },
    /* What tells one distribution of looks from another. */
    key() {
      return [...this.places].join();
    },
  };

  // Plotly reads a few tags in labels; a run's name is text.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  // Names of runs that are compared differ at their ends as often as at their beginnings: clip the middle.
  const clip = (text, most) => {
    const half = Math.floor((most - 1) / 2);
    return text.length > most ? text.slice(0, most - 1 - half) + "…" + text.slice(-half) : text;
  };

  // ------------------------------------------------------------------------------------------ layout

  function merge(base, over) {
    const result = { ...base };
    for (const [k, v] of Object.entries(over || {})) {
      const both = v && typeof v === "object" && !Array.isArray(v) && result[k] && typeof result[k] === "object";
      result[k] = both ? merge(result[k], v) : v;
    }
    return result;
  }

  function layoutOf(chart, panel, view, div) {
    const ink = color("ink"), muted = color("muted"), grid = color("grid"), line = color("line");
    const sans = getComputedStyle(document.body).fontFamily;
    const narrow = div.clientWidth < 420;
    let layout = {
      font: { family: sans, size: 12, color: ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 54, r: 14, t: 10, b: 46 },
      showlegend: false,
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      hoverlabel: { bgcolor: color("paper"), bordercolor: line, font: { family: sans, size: 12, color: ink } },
      width: div.clientWidth,
      height: div.clientHeight,
    };
    layout = merge(layout, resolve(chart, merge(chart.spec.layouts[view] || {}, panel.spec.layout || {})));
    if (chart.spec.link) {
      const range = links.range(chart);
      const title = chart.choice("axis") === "epoch" ? "epoch" : "step";
      layout.xaxis = merge(layout.xaxis || {}, { title: { text: title }, ...(range ? { range: [...range], autorange: false } : {}) });
      layout.yaxis = merge(layout.yaxis || {}, { fixedrange: true });
      layout.dragmode = "zoom";
    }
    const axis = { gridcolor: grid, linecolor: line, tickcolor: line, tickfont: { color: muted, size: 11 }, zeroline: false, showline: true, ticks: "outside", ticklen: 4, automargin: true, title: { standoff: 8, font: { size: 12, color: muted } } };
    for (const key of Object.keys(layout).concat(["xaxis", "yaxis"])) {
      if (/^[xy]axis\d*$/.test(key)) layout[key] = merge(axis, layout[key]);
    }
    if (layout.scene) {
      const solid = { gridcolor: grid, showbackground: false, zeroline: false, showspikes: false, linecolor: line, tickfont: { color: muted, size: 10 }, title: { font: { size: 12, color: muted } } };
      for (const key of ["xaxis", "yaxis", "zaxis"]) layout.scene[key] = merge(solid, layout.scene[key]);
      layout.scene.camera = chart.camera;
      layout.scene.aspectratio = chart.aspect || layout.scene.aspectratio;
      chart.whole = chart.whole || layout.scene.aspectratio;
      layout.scene.dragmode = "turntable";
    }
    if (layout.yaxis && layout.yaxis.rows) {
      const runs = chart.rowRuns();
      delete layout.yaxis.rows;
      Object.assign(layout.yaxis, {
        tickmode: "array",
        tickvals: runs.map((_, i) => i),
        ticktext: runs.map((r) => plain(clip(page.runs[r].name, narrow ? 20 : 34))),
        range: [runs.length - 0.4, -0.6],
        fixedrange: true,
        tickfont: { color: ink, size: 12 },
      });
    }
    return layout;
  }

  // ------------------------------------------------------------------------------------------ charts

  class Panel {
    constructor(chart, element, spec) {
      this.chart = chart;
      this.element = element;
      this.spec = spec;
      this.plot = element.querySelector(".plot");
      this.drawn = "";
      this.visible = false;
      if (spec.run === null && chart.spec.panels.some((p) => p.run !== null)) element.dataset.all = "";
    }

    traces() {
      const given = this.spec.views[this.chart.view()] || [];
      const traces = given.same === undefined ? given : this.spec.views[given.same];
      return traces.filter((t) => t.run === undefined || t.always || shown.has(t.run));
    }

    wanted() {
      if (this.spec.run !== null && !shown.has(this.spec.run)) return false;
      return this.traces().length > 0;
    }

    place() {
      this.element.hidden = !this.wanted();
      const rows = this.chart.rowRuns().length;
      const byRows = this.chart.spec.height === null;
      const across = this.spec.run === null ? 1 : this.chart.growth();
      const inRows = ((this.chart.spec.layouts[this.chart.view()] || {}).yaxis || (this.spec.layout || {}).yaxis || {}).rows;
      this.plot.style.height = (byRows ? (inRows ? 70 + 30 * rows : 360) : Math.round(this.chart.spec.height * across)) + "px";
    }

    draw(again) {
      if (this.element.hidden || !this.visible) return;
      const view = this.chart.view();
      const key = view + "|" + this.chart.options() + "|" + looks.key();
      // One that was out of sight while the window changed is drawn anew when it comes back.
      if (this.drawn === key && !again && !misfits(this)) return;
      const layout = layoutOf(this.chart, this, view, this.plot);
      const data = this.traces().map((spec) => {
        const trace = resolve(this.chart, spec);
        if (spec.named !== undefined) trace.name = plain(clip(page.runs[spec.named].name, 40));
        if (trace.always && !shown.has(spec.run)) {
          trace.marker = { ...trace.marker, color: color("line"), size: 8, line: { color: color("muted"), width: 1 } };
          for (const bars of ["error_x", "error_y"]) trace[bars] = { ...trace[bars], visible: false };
        }
        for (const own of ["run", "named", "always"]) delete trace[own];
        return trace;
      });
      const config = { displaylogo: false, responsive: false, scrollZoom: false, displayModeBar: false };
      const solid = data.some((trace) => /^(surface|scatter3d)$/.test(trace.type));
      if (solid) layout.margin = { l: 0, r: 0, t: 0, b: 0 };
      else delete layout.scene;
      if (this.drawn && this.solid !== solid) this.clear();
      this.solid = solid;
      this.drawn = key;
      // One that was scrolled out of sight and cleared before Plotly had finished fails there: nobody misses it.
      Promise.resolve(Plotly.react(this.plot, data, layout, config)).catch((error) => {
        if (this.drawn === key) throw error;
      });
      if (solid && !this.linked) {
        this.linked = true;
        const follow = (event) => {
          const camera = event && event["scene.camera"], aspect = event && event["scene.aspectratio"];
          if (camera || aspect) this.chart.turn(camera || this.chart.camera, aspect || this.chart.aspect, this);
        };
        this.plot.on("plotly_relayouting", follow);
        this.plot.on("plotly_relayout", follow);
      }
      if (this.chart.spec.link && !this.linked) {
        this.linked = true;
        this.plot.on("plotly_relayout", (event) => links.follow(this, event));
      }
    }

    clear() {
      if (!this.drawn) return;
      // A page may hold few WebGL contexts: one that is out of sight is given back.
      this.plot.querySelectorAll("canvas").forEach((canvas) => {
        const gl = canvas.getContext("webgl") || canvas.getContext("webgl2");
        const lose = gl && gl.getExtension("WEBGL_lose_context");
        if (lose) lose.loseContext();
      });
      Plotly.purge(this.plot);
      this.plot.textContent = "";
      this.drawn = "";
      this.linked = false;
    }
  }

  class Chart {
    constructor(element) {
      this.element = element;
      this.camera = JSON.parse(JSON.stringify(CAMERA));
      this.loaded = false;
    }

    /* Unpack the data once; a promise only where they were packed, so that printing can draw at once. */
    load() {
      if (this.loaded || this.loading) return this.loading;
      const data = dataOf(this.element.dataset.chart);
      if (!(data instanceof Promise)) return this.take(data);
      this.loading = data.then((spec) => this.take(spec));
      return this.loading;
    }

    take(spec) {
      this.loaded = true;
      this.element.dataset.loaded = "";
      this.loading = undefined;
      this.spec = spec;
      // A column is decoded when it is first drawn: with many runs most never are.
      this.columns = spec.series.map((s) => lazily(s.columns));
      this.panels = spec.panels.map((p, i) => {
        const element = this.element.querySelector(`.panel[data-panel="${i}"]`);
        return element ? this.panel(p, element) : null;
      });
      const solid = this.element.querySelector("input[value='3d']");
      if (solid && !webgl()) {
        this.element.querySelectorAll("input[value='3d'], input[value='both']").forEach((input) => (input.disabled = true));
        this.element.querySelector("input[value='contour']").checked = true;
        const note = document.createElement("p");
        note.className = "aside";
        note.textContent = "This browser has no WebGL, which surfaces in 3D need: their contours are drawn.";
        this.element.querySelector(".panels").before(note);
      }
      this.update();
    }

    panel(spec, element) {
      const panel = new Panel(this, element, spec);
      panelOf.set(element, panel);
      watch.observe(element);
      return panel;
    }

    /* The panels of runs that were not drawn at first are made when they are chosen. */
    complete() {
      this.spec.panels.forEach((p, i) => {
        if (this.panels[i] || !shown.has(p.run)) return;
        const [title, label, lines] = this.spec.words[i];
        const element = document.createElement("div"), plot = document.createElement("div");
        element.className = "panel";
        element.dataset.panel = i;
        element.dataset.run = p.run;
        if (title) {
          const head = document.createElement("h4");
          head.append(looks.swatch(p.run), " " + title);
          element.append(head);
        }
        for (const text of lines) {
          const line = document.createElement("p");
          line.className = "line";
          line.textContent = text;
          element.append(line);
        }
        plot.className = "plot";
        plot.setAttribute("role", "img");
        plot.setAttribute("aria-label", label);
        if (this.element.classList.contains("surface")) plot.tabIndex = 0;
        element.append(plot);
        const next = this.panels.slice(i + 1).find(Boolean);
        this.element.querySelector(".panels").insertBefore(element, next ? next.element : null);
        this.panels[i] = this.panel(p, element);
      });
    }

    made() {
      return this.panels.filter(Boolean);
    }

    chosen(kind) {
      const controls = [...this.element.querySelectorAll(`[data-${kind}]`)];
      const names = [...new Set(controls.map((c) => c.dataset[kind]))];
      return names.map((name) => [name, controls.find((c) => c.dataset[kind] === name && (c.type === "hidden" || c.tagName === "SELECT" || c.checked)).value]);
    }

    view() {
      return this.chosen("control").map(([, value]) => value).join(".") || "all";
    }

    options() {
      return this.chosen("option").map(([, value]) => value).join(".");
    }

    choice(name) {
      return (this.chosen("option").find(([n]) => n === name) || [])[1];
    }

    /* As many panels side by side as fit, and rows of equal length: four are 4, or 2 and 2, never 3 and 1. */
    arrange() {
      const box = this.element.querySelector(".panels");
      if (this.element.classList.contains("wide")) return;
      const n = Math.max(1, box.querySelectorAll(".panel[data-run]:not([hidden])").length);
      const most = Math.max(1, Math.floor((box.clientWidth + 22) / (286 + 22)));
      this.across = Math.ceil(n / Math.ceil(n / Math.min(n, most)));
      box.style.setProperty("--across", this.across);
    }

    /* How much higher than usual panels are that have much room. */
    growth() {
      const width = this.element.querySelector(".panels").clientWidth / (this.across || 1);
      return Math.min(1.6, Math.max(1, width / 380));
    }

    rowRuns() {
      return [...shown].filter((run) => this.spec.series.some((s) => s.run === run)).sort((a, b) => a - b);
    }

    update(again) {
      const many = page.runs.length > page.chips, chips = this.element.querySelector(".chips");
      if (many && chips && this.loaded) {
        const own = new Set(this.spec.series.map((s) => s.run));
        chips.replaceChildren(...[...shown].filter((run) => own.has(run)).sort((a, b) => a - b).map(chipOf));
      } else {
        this.element.querySelectorAll(".chip").forEach((chip) => {
          const on = shown.has(Number(chip.dataset.run));
          chip.setAttribute("aria-pressed", String(on));
          chip.hidden = many && !on;
        });
      }
      const some = this.element.querySelector(".some");
      some.hidden = shown.size === page.runs.length || "all" in some.dataset;
      some.firstElementChild.textContent = `${shown.size} of ${page.runs.length} runs are drawn.`;
      const view = this.view();
      this.element.querySelectorAll(".colorbar").forEach((bar) => (bar.hidden = bar.dataset.view !== view));
      if (!this.loaded) {
        // Before it is drawn a figure takes the room that it will need, so that links land where they point.
        this.element.querySelectorAll(".panel[data-run]").forEach((p) => (p.hidden = !shown.has(Number(p.dataset.run))));
        this.arrange();
        return;
      }
      this.complete();
      this.made().forEach((panel) => (panel.element.hidden = !panel.wanted()));
      this.arrange();
      this.made().forEach((panel) => panel.place());
      this.made().forEach((panel) => panel.draw(again));
    }

    turn(camera, aspect, from) {
      this.camera = camera;
      this.aspect = aspect;
      if (this.turning) return;
      this.turning = true;
      requestAnimationFrame(() => {
        const others = this.made().filter((p) => p !== from && p.drawn && p.solid && p.visible);
        Promise.allSettled(others.map((p) => Plotly.relayout(p.plot, { "scene.camera": this.camera, "scene.aspectratio": this.aspect || this.whole }))).then(() => {
          this.turning = false;
        });
      });
    }

    turnBy(angle, lift, zoom) {
      const { x, y, z } = this.camera.eye;
      const flat = Math.hypot(x, y), far = Math.hypot(x, y, z);
      const around = Math.atan2(y, x) + angle;
      const up = Math.max(-1.5, Math.min(1.5, Math.atan2(z, flat) + lift));
      const eye = { x: far * Math.cos(up) * Math.cos(around), y: far * Math.cos(up) * Math.sin(around), z: far * Math.sin(up) };
      const size = this.aspect || this.whole;
      this.turn({ ...this.camera, eye }, { x: size.x * zoom, y: size.y * zoom, z: size.z * zoom }, null);
    }

    async csv() {
      await this.load();
      const series = this.spec.series.map((s, i) => ({ ...s, values: this.columns[i] })).filter((s) => s.csv);
      const names = [...new Set(series.flatMap((s) => [...s.dims, ...Object.keys(s.columns)]))];
      const lines = [["run", ...names].map(cell).join(",")];
      for (const s of series) {
        const sizes = s.dims.map((d) => s.values[d].values.length);
        const total = sizes.reduce((a, b) => a * b, 1);
        for (let k = 0; k < total; k++) {
          const at = { [s.dims[0]]: sizes.length > 1 ? Math.floor(k / sizes[1]) : k };
          if (sizes.length > 1) at[s.dims[1]] = k % sizes[1];
          const place = (n) => (n in at ? at[n] : s.values[n].values.length === total ? k : at[s.dims[0]]);
          const row = names.map((n) => (n in s.values ? written(s.values[n].values, place(n)) : ""));
          lines.push([s.name, ...row].map(cell).join(","));
        }
      }
      return lines.join("\r\n") + "\r\n";
    }
  }

  /* One image of all the panels as they stand, with their names: what goes into a slide. */
  async function picture(chart) {
    await chart.load();
    const panels = chart.made().filter((p) => !p.element.hidden);
    panels.forEach((p) => { p.visible = true; p.draw(); });
    const ratio = 2, head = 26, gap = 20;
    const width = Math.max(...panels.map((p) => p.plot.clientWidth)), height = Math.max(...panels.map((p) => p.plot.clientHeight));
    const across = Math.min(panels.length, Math.max(1, Math.round(chart.element.clientWidth / (width + gap))));
    const canvas = document.createElement("canvas");
    canvas.width = ratio * (across * (width + gap) + gap);
    canvas.height = ratio * (Math.ceil(panels.length / across) * (head + height + gap) + gap);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.fillStyle = color("paper");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = color("ink");
    pen.font = "600 14px " + getComputedStyle(document.body).fontFamily;
    for (const [i, panel] of panels.entries()) {
      const x = gap + (i % across) * (width + gap), y = gap + Math.floor(i / across) * (head + height + gap);
      const image = new Image();
      image.src = await Plotly.toImage(panel.plot, { format: "png", width: panel.plot.clientWidth, height: panel.plot.clientHeight, scale: ratio });
      await image.decode();
      const title = panel.element.querySelector("h4");
      if (title) pen.fillText(title.textContent.trim(), x, y + 14, width);
      pen.drawImage(image, x, y + head, panel.plot.clientWidth, panel.plot.clientHeight);
    }
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }

  // Single precision carries 8 digits; the rest that a double shows of it is noise.
  const written = (values, k) => (values instanceof Float32Array && Number.isFinite(values[k]) ? Number(values[k].toPrecision(8)) : values[k]);

  function cell(value) {
    if (typeof value === "number") return String(value);
    // A spreadsheet runs text that begins like a formula.
    const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : String(value);
    return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }

  let glKnown;
  function webgl() {
    if (glKnown === undefined) {
      const gl = document.createElement("canvas").getContext("webgl");
      glKnown = Boolean(gl);
      if (gl && gl.getExtension("WEBGL_lose_context")) gl.getExtension("WEBGL_lose_context").loseContext();
    }
    return glKnown;
  }

  // ------------------------------------------------------------------------------------------ in view

  const panelOf = new WeakMap();
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const panel = panelOf.get(entry.target);
        panel.visible = entry.isIntersecting;
        if (panel.visible) panel.draw();
        else if (panel.solid) panel.clear();
      }
    },
    { rootMargin: "250px" }
  );
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        charts.find((c) => c.element === entry.target).load();
      }
    },
    { rootMargin: "600px" }
  );

  let resizing;
  const resized = new ResizeObserver(() => {
    clearTimeout(resizing);
    resizing = setTimeout(() => charts.forEach((c) => {
      c.arrange();
      if (!c.loaded) return;
      c.made().forEach((p) => p.place());
      c.made().forEach((p) => p.drawn && fit(p));
    }), 120);
  });
  function misfits(panel) {
    const { clientWidth: width, _fullLayout: drawn } = panel.plot;
    return Boolean(width && drawn && Math.abs(drawn.width - width) > 1);
  }
  function fit(panel) {
    if (misfits(panel)) panel.draw(true);
  }

  // ------------------------------------------------------------------------------------------ linked zoom

  /* Charts of one link show the same part of their x-axes; zooming or choosing an axis in one does it in all. */
  const links = {
    ranges: {},
    busy: false,

    range(chart) {
      return this.ranges[chart.spec.link] || chart.spec.extent[chart.choice("axis")];
    },

    follow(panel, event) {
      if (this.busy || !event) return;
      const low = event["xaxis.range[0]"], high = event["xaxis.range[1]"], both = event["xaxis.range"];
      if (low !== undefined) this.zoom(panel.chart.spec.link, [low, high], panel);
      else if (both) this.zoom(panel.chart.spec.link, both, panel);
      else if (event["xaxis.autorange"]) this.zoom(panel.chart.spec.link, undefined, panel);
    },

    zoom(link, range, from) {
      this.ranges[link] = range && range.map(Number);
      this.busy = true;
      const others = charts.filter((c) => c.loaded && c.spec.link === link).flatMap((c) => c.made()).filter((p) => p !== from && p.drawn);
      // Going back is to the whole training, the same in all of them, and so for the one it came from too.
      const all = range ? others : [...others, ...(from ? [from] : [])];
      Promise.allSettled(all.map((p) => Plotly.relayout(p.plot, { "xaxis.range": [...this.range(p.chart)] }))).then(() => (this.busy = false));
    },

    choose(chart, input) {
      const link = chart.element.dataset.link;
      delete this.ranges[link];
      for (const other of charts.filter((c) => c.element.dataset.link === link)) {
        const twin = other.element.querySelector(`[data-option="${input.dataset.option}"][value="${input.value}"]`);
        if (twin) twin.checked = true;
        other.update(true);
      }
    },

    press(chart, event) {
      const panel = chart.made().find((p) => p.plot === event.target);
      const axis = panel && panel.plot._fullLayout && panel.plot._fullLayout.xaxis;
      if (!axis) return;
      const [low, high] = axis.range.map(Number), width = high - low;
      const moves = { ArrowLeft: [-0.2, -0.2], ArrowRight: [0.2, 0.2], "+": [0.15, -0.15], "=": [0.15, -0.15], "-": [-0.2, 0.2] };
      if (moves[event.key]) this.zoom(chart.spec.link, [low + moves[event.key][0] * width, high + moves[event.key][1] * width], null);
      else if (event.key === "0" || event.key === "Escape") this.zoom(chart.spec.link, undefined, null);
      else return;
      event.preventDefault();
    },
  };

  // ------------------------------------------------------------------------------------------ people

  function pick(run, on) {
    if (on) shown.add(run);
    else shown.delete(run);
    document.querySelectorAll(`.pick[value="${run}"]`).forEach((box) => (box.checked = on));
    looks.assign();
    charts.forEach((c) => c.update());
  }

  /* Draw these runs and no others: as many as can be told apart. */
  function pickOnly(runs) {
    shown.clear();
    runs.slice(0, page.most).forEach((run) => shown.add(run));
    document.querySelectorAll(".pick").forEach((box) => (box.checked = shown.has(Number(box.value))));
    looks.assign();
    charts.forEach((c) => c.update());
  }

  function chipOf(run) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.dataset.run = run;
    chip.setAttribute("aria-pressed", "true");
    chip.append(looks.swatch(run), " " + page.runs[run].name);
    return chip;
  }

  function lazily(columns) {
    const known = {};
    for (const [name, packed] of Object.entries(columns)) {
      let value;
      Object.defineProperty(known, name, { enumerable: true, get: () => (value = value || decode(packed)) });
    }
    return known;
  }

  function save(name, blob) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  document.querySelectorAll(".pick").forEach((box) => (box.checked = shown.has(Number(box.value))));
  looks.assign();
  document.querySelectorAll("figure[data-chart]").forEach((element) => {
    const chart = new Chart(element);
    charts.push(chart);
    chart.update();
    element.addEventListener("change", (event) => {
      if (event.target.dataset.control) chart.update();
      if (event.target.dataset.option) links.choose(chart, event.target);
    });
    element.querySelector(".csv").addEventListener("click", async () => {
      save(element.dataset.chart + ".csv", new Blob([await chart.csv()], { type: "text/csv;charset=utf-8" }));
    });
    element.querySelector(".png").addEventListener("click", async (event) => {
      const button = event.currentTarget;
      button.disabled = true;
      try {
        save(element.dataset.chart + ".png", await picture(chart));
      } finally {
        button.disabled = false;
      }
    });
    element.addEventListener("keydown", (event) => {
      if (!event.target.classList.contains("plot")) return;
      if (chart.spec && chart.spec.link) return links.press(chart, event);
      if (!/^(3d|both)/.test(chart.view())) return;
      const step = 0.12;
      const turns = { ArrowLeft: [-step, 0, 1], ArrowRight: [step, 0, 1], ArrowUp: [0, step, 1], ArrowDown: [0, -step, 1], "+": [0, 0, 1.1], "=": [0, 0, 1.1], "-": [0, 0, 0.9] };
      if (turns[event.key]) chart.turnBy(...turns[event.key]);
      else if (event.key === "0") chart.turn(JSON.parse(JSON.stringify(CAMERA)), undefined, null);
      else return;
      event.preventDefault();
    });
    ready.then(() => near.observe(element));
  });
  document.addEventListener("change", (event) => {
    if (event.target.classList.contains("pick")) pick(Number(event.target.value), event.target.checked);
  });
  document.addEventListener("click", (event) => {
    const chip = event.target.closest(".chip");
    if (chip) pick(Number(chip.dataset.run), chip.getAttribute("aria-pressed") !== "true");
  });
  document.addEventListener("draw-runs", (event) => pickOnly(event.detail));
  resized.observe(document.body);

  // Printing can't wait until figures are unpacked that nobody has scrolled to: that is done before, in quiet moments.
  const quiet = window.requestIdleCallback || ((then) => setTimeout(then, 50));
  function unpackNext() {
    const next = charts.find((c) => !c.loaded && document.getElementById("data-" + c.element.dataset.chart).type !== "application/json");
    // By then it may have been scrolled to.
    if (next) quiet(() => Promise.resolve(next.load()).then(unpackNext));
  }
  ready.then(unpackNext);

  const here = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        document.querySelectorAll("nav a").forEach((a) => {
          if (a.getAttribute("href") !== "#" + entry.target.id) return a.removeAttribute("aria-current");
          a.setAttribute("aria-current", "true");
          const list = a.closest("ul");
          if (list.scrollWidth > list.clientWidth) list.scrollLeft = a.offsetLeft - list.clientWidth / 3;
        });
      }
    },
    { rootMargin: "-10% 0px -80% 0px" }
  );
  document.querySelectorAll("main section").forEach((s) => here.observe(s));

  const redraw = () => charts.forEach((c) => c.update(true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // Paper is white and narrow: everything is drawn for it before printing, and as it was after.
  let before = [];
  window.addEventListener("beforeprint", () => {
    document.documentElement.dataset.print = "";
    before = [...document.querySelectorAll("details:not([open])")];
    before.forEach((d) => (d.open = true));
    charts.forEach((c) => {
      c.load();
      if (!c.loaded) return;
      c.made().forEach((p) => (p.visible = true));
      c.update(true);
    });
  });
  window.addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    before.forEach((d) => (d.open = false));
    redraw();
  });
})();
