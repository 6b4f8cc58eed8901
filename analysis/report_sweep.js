"use strict";

const MOST_ROWS = 300;
const NARROW = 600;
const LEGIBLE_COLUMN = 25;
const at = (id) => document.getElementById(id);

function shown(value) {
  if (typeof value !== "number") return value;
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return "∞";
  return value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3) ? value.toExponential(3) : String(value);
}

function fill(body, rows) {
  body.replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    line.append(...row.map((value) => {
      const cell = document.createElement("td");
      cell.textContent = shown(value);
      if (typeof value === "string") cell.className = "word";
      else cell.dataset.value = value;
      return cell;
    }));
    return line;
  }));
}

const measure = () => data.measures[at("measure").selectedIndex];
const setting = () => measure().settings[at("setting").selectedIndex];
let attackers = null;

function offerAttackers() {
  const numbers = Object.keys(setting().maps);
  if (!numbers.includes(attackers)) attackers = numbers[Math.floor((numbers.length - 1) / 2)];
  at("attackers").replaceChildren(...numbers.map((number) => {
    const button = document.createElement("button");
    button.textContent = Number(number) ? number + " attackers" : "no attack";
    button.setAttribute("aria-pressed", number === attackers);
    button.addEventListener("click", () => { attackers = number; draw(); });
    return button;
  }));
}

function line(along, place, thick) {
  const across = along === "x" ? "y" : "x";
  return {
    type: "line", [along + "ref"]: along, [across + "ref"]: "paper", [along + "0"]: place, [along + "1"]: place,
    [across + "0"]: 0, [across + "1"]: 1, line: { color: "#fff", width: thick },
  };
}

const bold = (rule) => (rule === data.proposed ? "<b>" + rule + "</b>" : rule);

function drawMap() {
  const map = setting().maps[attackers];
  const place = at("map");
  const narrow = place.clientWidth < NARROW;
  const column = (place.clientWidth - 150) / map.attacks.length;
  const missing = map.shade.some((row) => row.includes(null));
  const font = { size: narrow ? 9 : 12 };
  const trace = {
    type: "heatmap", z: map.shade, x: map.attacks, y: map.rules, zmin: -data.end, zmax: data.end,
    colorscale: data.scale, xgap: 1, ygap: 1, customdata: map.hover, hovertemplate: "%{customdata}<extra></extra>",
    hoverongaps: true, text: map.short, texttemplate: column < LEGIBLE_COLUMN ? "" : "%{text}", textfont: { size: 10 },
    colorbar: {
      orientation: "h", y: 0, yanchor: "top", thickness: 12, len: narrow ? 1 : 0.7, outlinewidth: 0, tickfont: font,
      tickvals: data.ticks.map(([value]) => value),
      ticktext: data.ticks.map(([, text]) => (narrow ? text.split(" ")[0] : text)),
    },
  };
  const axis = { type: "category", ticks: "", showgrid: false, zeroline: false, fixedrange: true, tickfont: font };
  Plotly.react(place, [trace], {
    xaxis: { ...axis, side: "top", tickangle: narrow ? -90 : -45, automargin: true, dtick: 1 },
    yaxis: {
      ...axis, autorange: "reversed", automargin: true, tickvals: map.rules, ticktext: map.rules.map(bold),
    },
    shapes: [...(map.calm ? [line("x", 0.5, 5)] : []), ...(map.bound && map.rules.length > 1 ? [line("y", 0.5, 5)] : [])],
    margin: { l: 10, r: 10, t: 10, b: 60 }, dragmode: false, plot_bgcolor: missing ? data.unknown : "#fff",
    hoverlabel: { align: "left" }, height: 190 + (narrow ? 15 : 19) * map.rules.length,
  }, { responsive: true, displayModeBar: false });
}

function drawRanking() {
  fill(at("ranking").tBodies[0], setting().maps[attackers].ranking);
  sortRows(at("ranking"));
}

function offerAttacks() {
  const names = Object.keys(setting().breakdown?.attacks ?? {});
  const select = at("attack");
  const before = select.value;
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === before)));
}

let visible = null;

function offerRules() {
  at("legend").replaceChildren(...data.rules.map((rule, k) => {
    const button = document.createElement("button");
    button.textContent = rule;
    button.style.setProperty("--colour", data.looks[k][0]);
    button.setAttribute("aria-pressed", visible[k]);
    button.addEventListener("click", ({ detail }) => {
      if (detail === 2) visible = data.rules.map((_, other) => other === k);
      else visible[k] = !visible[k];
      [...at("legend").children].forEach((other, place) => other.setAttribute("aria-pressed", visible[place]));
      drawBreakdown();
    });
    return button;
  }));
}

function drawBreakdown() {
  const place = at("breakdown");
  if (!place) return;
  const found = setting().breakdown;
  place.closest("section").hidden = !found;
  if (!found) return;
  offerAttacks();
  if (!visible) {
    visible = [...found.shown];
    offerRules();
  }
  const traces = found.attacks[at("attack").value].map((curve, k) => ({
    name: data.rules[k], x: curve.x, y: curve.y, text: curve.text, mode: "lines+markers", visible: visible[k],
    hovertemplate: "%{text}<extra>" + data.rules[k] + "</extra>", marker: { size: 5 },
    line: { color: data.looks[k][0], dash: data.looks[k][1], width: data.looks[k][2] },
    error_y: { type: "data", symmetric: false, array: curve.up, arrayminus: curve.down, thickness: 1, width: 3 },
  }));
  const range = found.limits.map(Math.log10);
  Plotly.react(place, traces, {
    xaxis: { title: { text: "attackers, of " + found.agents + " agents" }, tickvals: found.numbers, zeroline: false },
    yaxis: {
      title: { text: measure().label }, type: "log", range, exponentformat: "power",
      ...(range[1] - range[0] > 1.5 ? { dtick: 1 } : {}),
    },
    margin: { l: 70, r: 10, t: 10, b: 45 }, hovermode: "closest", showlegend: false, height: 460,
  }, { responsive: true, displaylogo: false });
}

let rows = [];

function listCells() {
  const { values, ratios } = measure();
  rows = data.cells.flatMap((cell, c) => data.rules.map((rule, r) => {
    const row = [...cell.slice(0, -1), rule, values[c][r], ratios[c][r], cell.at(-1)];
    return { row, fields: [...cell, rule].map((field) => String(field).toLowerCase()) };
  }));
  at("cells").querySelectorAll("th")[data.swept.length + 4].textContent = measure().label;
}

function offerCells() {
  const heads = [...data.swept, "attackers", "attack", "seed", "rule", "", "relative to none", "file"];
  at("cells").tHead.rows[0].append(...heads.map((text, k) => {
    const head = document.createElement("th");
    head.textContent = text;
    if (k < data.swept.length || ["attack", "rule", "file"].includes(text)) head.className = "word";
    head.addEventListener("click", () => { turn(at("cells"), head); drawCells(); });
    return head;
  }));
}

function drawCells() {
  const words = [...at("filter").value.toLowerCase().matchAll(/"([^"]*)"?|(\S+)/g)];
  const fits = ({ fields }) => words.every(([, whole, part]) => (
    part === undefined ? fields.includes(whole) : fields.some((field) => field.includes(part))
  ));
  const found = rows.filter(fits);
  const by = order(at("cells"));
  if (by) found.sort((a, b) => compare(a.row[by.column], b.row[by.column], by.down));
  fill(at("cells").tBodies[0], found.slice(0, MOST_ROWS).map(({ row }) => row));
  const count = found.length.toLocaleString("en") + " rows";
  at("found").textContent = found.length > MOST_ROWS ? `the first ${MOST_ROWS} of ${count}` : count;
}

function draw() {
  offerAttackers();
  drawMap();
  drawRanking();
  drawBreakdown();
}

function drawAll() {
  draw();
  listCells();
  drawCells();
}

offerCells();
drawAll();
at("measure").addEventListener("change", drawAll);
at("setting").addEventListener("change", draw);
at("attack")?.addEventListener("change", drawBreakdown);
at("filter").addEventListener("input", drawCells);
at("map").on("plotly_click", ({ points: [point] }) => {
  const attack = point.x === "no attack" ? ["none", "0"] : [point.x, attackers];
  at("filter").value = [point.y, ...attack].map((word) => `"${word}"`).join(" ");
  drawCells();
});
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  draw();
});
