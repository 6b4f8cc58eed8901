"use strict";

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function drawNetwork(network) {
  const bins = network.colours.length;
  const weights = Object.fromEntries(Object.entries(network.weights).map(([rule, text]) => [rule, bytes(text)]));
  const rule = document.getElementById("network-rule");
  const slider = document.getElementById("network-iteration");
  const edges = network.source.length;
  const lines = () => {
    const found = Array.from({ length: bins }, () => ({ x: [], y: [] }));
    const first = Number(slider.value) * edges;
    for (let e = 0; e < edges; e++) {
      const code = weights[rule.value][first + e];
      if (code === 255 || code === 0) continue;
      const [l, k] = [network.source[e], network.target[e]];
      const bin = found[Math.min(bins - 1, Math.floor((code * bins) / 255))];
      bin.x.push((network.x[l] + network.x[k]) / 2, network.x[k], null);
      bin.y.push((network.y[l] + network.y[k]) / 2, network.y[k], null);
    }
    return found;
  };
  const traces = lines().map((line, bin) => ({
    ...line, mode: "lines", hoverinfo: "skip", name: network.labels[bin],
    line: { color: network.colours[bin], width: 1 + (3 * bin) / bins },
  }));
  traces.push({
    x: network.x, y: network.y, text: network.names, mode: "markers", hoverinfo: "text", showlegend: false,
    marker: { size: 9, color: network.nodes, line: { color: "#fff", width: 1 } },
  });
  const axis = { visible: false };
  const place = document.getElementById("network");
  Plotly.newPlot(place, traces, {
    xaxis: axis, yaxis: { ...axis, scaleanchor: "x" }, margin: { l: 0, r: 0, t: 0, b: 0 },
    legend: { title: { text: "weight" }, orientation: "h" }, height: Math.min(620, 0.9 * place.clientWidth + 80),
  }, { responsive: true, displaylogo: false });
  const update = () => {
    document.getElementById("network-label").textContent = "iteration " + network.iterations[slider.value];
    const found = lines();
    Plotly.restyle(place, { x: found.map((f) => f.x), y: found.map((f) => f.y) }, found.map((_, bin) => bin));
  };
  slider.addEventListener("input", update);
  rule.addEventListener("change", update);
  update();
}

if (data) drawNetwork(data);
