// Curves over steps, epochs or time; a table of the same points for those who do not look at pictures.
import { html, settings, t, useEffect, useRef, figure } from "./base.js";

const COLORS = ["#3552c8", "#c2410c", "#0f766e", "#9333ea", "#be123c", "#4d7c0f", "#0369a1", "#a16207"];
const DARK = ["#8ea4ff", "#fb923c", "#2dd4bf", "#c084fc", "#fb7185", "#a3e635", "#38bdf8", "#facc15"];
const SMOOTHED_SHARE = 20;
const MOST_POINTS = 2000;
const MOST_ROWS = 200;

export const isDark = () => settings.theme === "dark"
  || (settings.theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);

// The mean of each value and its neighbours on both sides; the window shrinks at both ends, as in the run's `loss.png`.
export const smooth = (values) => {
  const reach = Math.max(1, Math.floor(values.length / (2 * SMOOTHED_SHARE)));
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, index) => {
    const start = index - Math.min(index, reach);
    const stop = Math.min(index + Math.min(index, reach) + 1, values.length);
    return (sums[stop] - sums[start]) / (stop - start);
  });
};

// Every stretch keeps its lowest and its highest point, so that no peak is lost.
const thinned = (points) => {
  if (points.length <= MOST_POINTS) return points;
  const size = Math.ceil(points.length / (MOST_POINTS / 2));
  const kept = [];
  for (let start = 0; start < points.length; start += size) {
    const part = points.slice(start, start + size);
    const sorted = [...part].sort((one, other) => one[1] - other[1]);
    const ends = new Set([sorted[0], sorted[sorted.length - 1]]);
    kept.push(...part.filter((point) => ends.has(point)));
  }
  return kept;
};

// Lines of one figure: [x, y] pairs of each, in the order of x.
export const pointsOf = (logs, name, axis) => {
  const epochs = new Map();
  const points = [];
  let before = null;
  for (const log of logs) {
    if (typeof log.epoch === "number") epochs.set(log.step, log.epoch);
    if (typeof log[name] !== "number") continue;
    const x = axis === "step" ? log.step : axis === "epoch" ? log.epoch ?? epochs.get(log.step) : log.time;
    if (typeof x === "number" && (before === null || x > before)) {
      points.push([x, log[name]]);
      before = x;
    }
  }
  return points;
};

// The lines share their places on the axis: those that a line lacks are spanned.
const aligned = (lines) => {
  const places = [...new Set(lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
  const at = new Map(places.map((x, index) => [x, index]));
  return [places, ...lines.map((line) => {
    const column = new Array(places.length).fill(undefined);
    for (const [x, y] of line.points) column[at.get(x)] = y;
    return column;
  })];
};

export function Chart({ series, axis, isLog, isSmooth, label }) {
  const place = useRef(null);
  const plot = useRef(null);
  const shape = JSON.stringify([series.map((each) => [each.name, each.isPoint]), axis, isLog, isSmooth, settings.theme, settings.language, isDark()]);
  const colors = isDark() ? DARK : COLORS;
  const lines = series.flatMap((each, index) => {
    const color = colors[index % colors.length];
    const points = thinned(each.points.filter(([, y]) => !isLog || y > 0));
    if (each.isPoint) return [{ name: each.name, points, color, isPoint: true }];
    if (!isSmooth || points.length < 8) return [{ name: each.name, points, color }];
    const soft = smooth(points.map(([, y]) => y));
    return [
      { name: "", points, color, isPale: true },
      { name: each.name, points: points.map(([x], number) => [x, soft[number]]), color },
    ];
  });
  const data = aligned(lines);

  useEffect(() => {
    const text = getComputedStyle(place.current).color;
    const grid = isDark() ? "#ffffff1f" : "#0000001a";
    const axisStyle = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 }, font: "12px system-ui" };
    const made = new uPlot({
      width: place.current.clientWidth,
      height: 320,
      scales: { x: { time: axis === "time" }, y: { distr: isLog ? 3 : 1 } },
      axes: [axisStyle, { ...axisStyle, size: 60 }],
      legend: { live: true },
      series: [
        { label: t().axes[axis] },
        ...lines.map((line) => ({
          label: line.name || "·",
          stroke: line.color,
          width: line.isPoint ? 0 : line.isPale ? 1 : 2,
          alpha: line.isPale ? 0.3 : 1,
          spanGaps: true,
          points: line.isPoint ? { show: true, size: 8, fill: line.color } : { show: line.points.length < 3 },
          value: (_, value) => figure(value),
        })),
      ],
      hooks: { ready: [(self) => {
        const rows = self.root.querySelectorAll(".u-legend .u-series");
        lines.forEach((line, index) => { if (line.isPale && rows[index + 1]) rows[index + 1].style.display = 'none'; });
      }] },
    }, data, place.current);
    plot.current = made;
    const watch = new ResizeObserver(() => requestAnimationFrame(() => {
      if (place.current && place.current.clientWidth !== made.width) made.setSize({ width: place.current.clientWidth, height: 320 });
    }));
    watch.observe(place.current);
    return () => { watch.disconnect(); made.destroy(); plot.current = null; };
  }, [shape]);

  // What is new is drawn into the same picture; a part that somebody has zoomed into stays.
  const extent = `${data[0].length}:${data[0][data[0].length - 1]}`;
  useEffect(() => {
    const self = plot.current;
    if (!self) return;
    const { min, max } = self.scales.x;
    const old = self.data[0];
    const isZoomed = min != null && old.length > 0 && (min > old[0] || max < old[old.length - 1]);
    self.setData(data, !isZoomed);
    if (isZoomed) self.setScale("x", { min, max });
  }, [extent, shape]);

  return html`
    <div class="chart" ref=${place} role="img" aria-label=${label}></div>
    <p class="faint">${t().resetZoom}</p>
    <details><summary>${t().asTable}</summary><${Points} series=${series} axis=${axis} /></details>`;
}

function Points({ series, axis }) {
  const places = [...new Set(series.flatMap((each) => each.points.map(([x]) => x)))].sort((a, b) => b - a).slice(0, MOST_ROWS);
  const columns = series.map((each) => new Map(each.points));
  const shown = (x) => (axis === "time" ? new Date(x * 1000).toLocaleTimeString() : figure(x));
  return html`<div class="scroll"><table>
    <thead><tr><th scope="col">${t().axes[axis]}</th>${series.map((each) => html`<th scope="col">${each.name}</th>`)}</tr></thead>
    <tbody>${places.map((x) => html`<tr key=${x}><th scope="row">${shown(x)}</th>
      ${columns.map((column) => html`<td>${column.has(x) ? figure(column.get(x)) : ""}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}
