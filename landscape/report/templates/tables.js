/* Tables: sort by a heading, keep the rows that a filter names, choose columns. Which runs are drawn is report.js's. */
(function () {
  "use strict";

  const dataRows = (table) => [...table.tBodies].flatMap((body) => [...body.rows].filter((row) => !row.classList.contains("group")));

  // ------------------------------------------------------------------------------------------ sort

  function sortValue(cell) {
    const text = cell.dataset.sort === undefined ? "" : cell.dataset.sort;
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  }

  function compare(x, y) {
    if (typeof x === "number" && typeof y === "number") return x - y;
    return String(x).localeCompare(String(y), undefined, { numeric: true });
  }

  function sortBy(button) {
    const head = button.closest("th"), table = button.closest("table");
    const index = Number(button.dataset.sort);
    const up = head.getAttribute("aria-sort") === "none" ? !head.classList.contains("num") : head.getAttribute("aria-sort") === "descending";
    table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("group")).map((row) => [sortValue(row.cells[index]), row]);
      rows.sort(([x], [y]) => {
        if (x === "" || y === "") return (x === "") - (y === ""); // what is missing comes last, both ways
        return up ? compare(x, y) : compare(y, x);
      });
      body.append(...rows.map(([, row]) => row));
    }
  }

  // ------------------------------------------------------------------------------------------ filter

  const TESTS = {
    "<": (x, y) => x < y, "<=": (x, y) => x <= y, ">": (x, y) => x > y, ">=": (x, y) => x >= y,
    "=": (x, y) => x === y, "!=": (x, y) => x !== y,
  };
  const plain = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "");

  /* Return [test of a row for each word of the filter, what was not understood]. */
  function parse(text, heads) {
    const names = heads.map((th) => [plain(th.dataset.key || ""), plain(th.textContent)]);
    const find = (name) => {
      for (const k of [0, 1]) {
        const at = names.findIndex((n) => n[k] === plain(name));
        if (at >= 0) return at;
      }
      return -1;
    };
    const tests = [];
    for (const word of text.match(/(?:[^\s"]|"[^"]*")+/g) || []) {
      const [, name, how, given] = word.match(/^([^<>=!]+)(<=|>=|!=|<|>|=)(.*)$/) || [];
      const clean = (part) => part.replace(/"/g, "").toLowerCase();
      if (how === undefined) {
        tests.push((row) => row.textContent.toLowerCase().includes(clean(word)));
        continue;
      }
      const at = find(name), wanted = clean(given);
      if (at < 0) return [[], `there is no column ${name}`];
      if (wanted === "") continue; // still typing
      const limit = Number(wanted);
      tests.push((row) => {
        const cell = row.cells[at], value = sortValue(cell);
        if (Number.isFinite(limit) && typeof value === "number") return TESTS[how](value, limit);
        if (value === "") return how === "!=";
        return how === "=" || how === "!=" ? TESTS[how](String(value).toLowerCase(), wanted) : false;
      });
    }
    return [tests, ""];
  }

  function filter(tools, table) {
    const heads = [...table.tHead.rows].pop().cells;
    const [tests, problem] = parse(tools.querySelector(".filter input").value, [...heads]);
    const rows = dataRows(table);
    let kept = 0;
    for (const row of rows) {
      row.hidden = !tests.every((test) => test(row));
      kept += !row.hidden;
    }
    for (const body of table.tBodies) {
      const title = body.querySelector(".group");
      if (title) title.hidden = [...body.rows].every((row) => row === title || row.hidden);
    }
    tools.querySelector(".found").textContent = problem || (tests.length ? `${kept} of ${rows.length} match` : "");
    const draw = tools.querySelector(".draw-found");
    if (draw) draw.disabled = kept === 0;
  }

  // ------------------------------------------------------------------------------------------ columns

  function showColumns(tools, table) {
    const boxes = [...tools.querySelectorAll(".columns input")];
    const hidden = new Set(boxes.filter((box) => !box.checked).map((box) => Number(box.value)));
    const [groups, heads] = table.tHead.rows.length > 1 ? table.tHead.rows : [null, table.tHead.rows[0]];
    for (const row of [heads, ...dataRows(table)]) {
      for (const cell of row.cells) cell.hidden = hidden.has(cell.cellIndex);
    }
    if (groups) {
      let at = 0;
      for (const cell of groups.cells) {
        const span = Number((cell.dataset.span = cell.dataset.span || cell.getAttribute("colspan")));
        let left = 0;
        for (let k = at; k < at + span; k++) left += !hidden.has(k);
        at += span;
        cell.hidden = left === 0;
        cell.colSpan = Math.max(left, 1);
      }
    }
    const total = heads.cells.length;
    table.querySelectorAll("tr.group th").forEach((th) => (th.colSpan = total - hidden.size));
    const summary = tools.querySelector(".columns summary");
    summary.textContent = hidden.size ? `Columns (${total - hidden.size} of ${total})` : "Columns";
  }

  /* Put away the columns of the highest rank, the last first, until the table is as wide as its box. */
  function fit(tools, table) {
    const box = table.closest(".scroll"), heads = [...[...table.tHead.rows].pop().cells];
    let excess = table.offsetWidth - box.clientWidth;
    if (excess <= 0 || box.clientWidth < 700) return; // a phone scrolls sideways: nothing would be left of it
    const order = heads.map((th, i) => [Number(th.dataset.rank), i, th.offsetWidth]).filter(([rank]) => rank > 0);
    order.sort((a, b) => b[0] - a[0] || b[1] - a[1]);
    const boxes = tools.querySelectorAll(".columns input");
    for (const [, i, width] of order) {
      if (excess <= 0) { // the columns that are left may have grown into the room
        showColumns(tools, table);
        excess = table.offsetWidth - box.clientWidth;
        if (excess <= 0) return;
      }
      excess -= width;
      boxes[i - 1].checked = false;
    }
    showColumns(tools, table);
  }

  document.querySelectorAll(".table-tools").forEach((tools) => {
    const table = document.getElementById(tools.dataset.for);
    tools.hidden = false;
    fit(tools, table);
    let typing;
    tools.querySelector(".filter input").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => filter(tools, table), 60);
    });
    tools.querySelector(".columns").addEventListener("change", () => showColumns(tools, table));
    const draw = tools.querySelector(".draw-found");
    if (draw) draw.addEventListener("click", () => {
      const runs = dataRows(table).filter((row) => !row.hidden).map((row) => Number(row.querySelector(".pick").value));
      document.dispatchEvent(new CustomEvent("draw-runs", { detail: runs }));
    });
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-sort]");
    if (button) sortBy(button);
    document.querySelectorAll("details.columns[open]").forEach((d) => d.contains(event.target) || (d.open = false));
  });
  document.addEventListener("keydown", (event) => {
    const open = event.key === "Escape" && document.querySelector("details.columns[open]");
    if (!open) return;
    open.open = false;
    open.querySelector("summary").focus();
  });
})();
