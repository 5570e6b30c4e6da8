// One run: where it is, its curves, predictions and checkpoints; stop, and the command that goes on with it.
import { ago, ask, bytes, figure, goTo, html, link, t, useEffect, usePolled, useRef, useState } from "./base.js";
import { Chart, pointsOf } from "./chart.js";
import { Hint, Progress, State, remaining } from "./runs.js";

const SKIPPED = new Set(["step", "epoch", "time", "memory_bytes", "total_flos"]);

// Everything that a run has logged; only what is new is fetched, and a file that was written anew is read anew.
export const useLogs = (names) => {
  const known = useRef(new Map());
  const [, again] = useState(0);
  usePolled(async () => {
    for (const name of names) {
      const before = known.current.get(name) ?? { file: "", offset: 0, logs: [] };
      const part = await ask("metrics", { name, file: before.file, offset: before.offset });
      if (!part.logs.length && !part.reset) continue;
      const logs = part.reset ? part.logs : before.logs.concat(part.logs);
      known.current.set(name, { file: part.file, offset: part.offset, logs });
      again((number) => number + 1);
    }
  }, 1, [names.join("|")]);
  return names.map((name) => known.current.get(name)?.logs ?? []);
};

export function Curves({ address, names, logs, page, name }) {
  const figures = [...new Set(logs.flatMap((each) => each.flatMap((log) => Object.keys(log).filter((key) => typeof log[key] === "number"))))]
    .filter((key) => !SKIPPED.has(key) && !key.startsWith("train_"));
  const query = Object.fromEntries(address.query);
  const metric = figures.includes(query.figure) ? query.figure : "loss";
  const axis = ["step", "epoch", "time"].includes(query.axis) ? query.axis : "step";
  const change = (values) => goTo(link(page, name, { ...query, ...values }));
  const series = names.flatMap((each, index) => {
    const own = [{ name: names.length > 1 ? each : metric, points: pointsOf(logs[index], metric, axis), isPoint: metric.startsWith("eval_") || metric.startsWith("test_") }];
    // The validation loss belongs to the loss.
    const scored = metric === "loss" && names.length === 1 ? pointsOf(logs[index], "eval_loss", axis) : [];
    return scored.length ? [...own, { name: "eval_loss", points: scored, isPoint: true }] : own;
  }).filter((each) => each.points.length);
  if (!figures.length) return null;
  return html`
    <div class="bar">
      <label>${t().metric} <select value=${metric} onChange=${(event) => change({ figure: event.target.value })}>
        ${figures.map((each) => html`<option value=${each} selected=${each === metric}>${each}</option>`)}</select></label>
      <label>${t().axis} <select value=${axis} onChange=${(event) => change({ axis: event.target.value })}>
        ${Object.entries(t().axes).map(([each, told]) => html`<option value=${each} selected=${each === axis}>${told}</option>`)}</select></label>
      <label><input type="checkbox" checked=${query.log === "1"} onChange=${(event) => change({ log: event.target.checked ? "1" : "" })} /> ${t().log}</label>
      <label><input type="checkbox" checked=${query.smooth !== "0"} onChange=${(event) => change({ smooth: event.target.checked ? "" : "0" })} /> ${t().smooth}</label>
    </div>
    <${Chart} series=${series} axis=${axis} isLog=${query.log === "1"} isSmooth=${query.smooth !== "0"} label="${t().curves}: ${metric}" />`;
}

export function CurvesPage({ address }) {
  const names = (address.query.get("with") ?? "").split("|").filter(Boolean);
  const logs = useLogs(names);
  return html`<p><a href=${link("runs", "", { with: names.join("|") })}>← ${t().back}</a></p><h1>${t().curves}</h1>
    <${Curves} address=${address} names=${names} logs=${logs} page="curves" name="" />`;
}

export function RunPage({ about, address }) {
  const { value: run, error } = usePolled(() => ask("run", { name: address.name }), 1.5, [address.name]);
  const [logs] = useLogs([address.name]);
  if (error?.status === 401) throw error;
  const back = html`<p><a href="#/">← ${t().back}</a></p>`;
  if (error?.status === 404) return html`${back}<h1>${t().noRun}</h1>`;
  if (!run) return html`${back}<p class="faint" aria-busy="true">…</p>`;
  const last = [...logs].reverse().find((log) => typeof log.tokens_per_second === "number");
  const left = remaining(logs, run);
  return html`
    ${back}
    ${error && html`<p class="banner" role="status">${t().away}</p>`}
    <div class="row"><h1>${run.name === "." ? run.folder.split("/").pop() : run.name}</h1><${State} run=${run} /></div>
    <${Progress} run=${run} />
    <dl class="numbers">
      <${Fact} name=${t().step} value="${run.step}${run.total_steps ? `/${run.total_steps}` : ""}" />
      <${Fact} name=${t().loss} value=${figure(run.loss)} />
      ${last && html`<${Fact} name=${t().speed} value=${figure(last.tokens_per_second)} />`}
      ${left && html`<${Fact} name=${t().left} value=${left} />`}
      ${run.memory_bytes && html`<${Fact} name=${t().memory} value=${bytes(run.memory_bytes)} />`}
      <${Fact} name=${t().method} value=${run.method || "–"} />
      <${Fact} name=${t().model} value=${run.model || "–"} />
      ${run.host && html`<${Fact} name=${t().host} value="${run.host}, ${t().pid} ${run.pid}${run.num_processes > 1 ? ` (${run.num_processes} ${t().processes})` : ""}" />`}
      <${Fact} name=${t().updated} value=${ago(run.updated)} />
    </dl>
    ${run.state === "running" && run.total > 0 && html`<p>${t().phases[run.phase]} ${run.done}/${run.total}</p>`}
    ${run.phase === null && html`<p class="faint">${t().oldRun}</p>`}
    <${Hint} run=${run} />
    ${run.error && html`<div class="error" role="alert"><b>${run.error.what}</b>${run.error.where && html`<br />${run.error.where}`}${run.error.fix && html`<br />${run.error.fix}`}</div>`}
    <${Actions} run=${run} isReadOnly=${about?.read_only} />
    <section><h2>${t().curves}</h2>
      ${logs.length ? html`<${Curves} address=${address} names=${[run.name]} logs=${[logs]} page="run" name=${address.name} />`
        : html`<p class="faint">${t().nothingLogged} ${run.phase ? t().phases[run.phase] : ""}</p>`}</section>
    <section><h2>${t().checkpoints}</h2>${run.checkpoints.length ? html`<div class="scroll"><table><tbody>
      ${[...run.checkpoints].reverse().map((each) => html`<tr key=${each.name}><th scope="row">${each.name}</th><td>${bytes(each.bytes)}</td><td>${ago(each.written)}</td></tr>`)}
      </tbody></table></div>` : html`<p class="faint">${t().none}</p>`}</section>
    <section><h2>${t().predictions}</h2>${run.predictions.length ? html`<${Predictions} run=${run} />` : html`<p class="faint">${t().none}</p>`}</section>
    ${run.record && html`<section><details><summary>${t().record}</summary><pre>${run.record}</pre></details></section>`}`;
}

const Fact = ({ name, value }) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;

function Actions({ run, isReadOnly }) {
  const [isAsking, setAsking] = useState(false);
  const [told, setTold] = useState("");
  const isLive = run.state === "running" || run.state === "silent";
  useEffect(() => { if (!isLive) { setAsking(false); setTold(""); } }, [isLive]);
  const stop = async () => {
    setAsking(false);
    try {
      await ask("stop", { name: run.name }, { method: "POST" });
      setTold(t().stopAsked);
    } catch (error) {
      setTold(error.message);
    }
  };
  const command = `glmtune resume ${/^[\w@%+=:,./-]+$/.test(run.path) ? run.path : `'${run.path.replaceAll("'", `'"'"'`)}'`}`;
  const mayResume = ["stopped", "killed", "failed"].includes(run.state) && run.checkpoint;
  return html`<div class="actions">
    ${isLive && !isReadOnly && !isAsking && !told && html`<button onClick=${() => setAsking(true)}>${t().stop}</button>`}
    ${isAsking && html`<p role="alertdialog" aria-label=${t().stop}>${run.step ? t().stopSure : t().stopEarly}
      <button class="danger" onClick=${stop}>${t().yes}</button> <button autofocus onClick=${() => setAsking(false)}>${t().no}</button></p>`}
    ${told && html`<p role="status">${told}</p>`}
    ${mayResume && html`<p>${t().resumeWith} <${Command} text=${command} /></p>`}
  </div>`;
}

function Command({ text }) {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setCopied(true);
      setTimeout(() => setCopied(false), 1500);
    } catch { /* a browser that lets no page copy: the text can be marked */ }
  };
  return html`<span class="command"><code>${text}</code> <button onClick=${copy}>${isCopied ? t().copied : t().copy}</button></span>`;
}

// What differs between two texts, by characters between their common beginning and end.
function Differing({ reference, text }) {
  let start = 0;
  while (start < Math.min(reference.length, text.length) && reference[start] === text[start]) start += 1;
  let end = 0;
  while (end < Math.min(reference.length, text.length) - start && reference[reference.length - 1 - end] === text[text.length - 1 - end]) end += 1;
  const middle = text.slice(start, text.length - end);
  return html`${text.slice(0, start)}${middle && html`<mark>${middle}</mark>`}${text.slice(text.length - end)}`;
}

function Predictions({ run }) {
  const files = [...run.predictions].sort((one, other) => order(other) - order(one));
  const [file, setFile] = useState(files[0]);
  const [filter, setFilter] = useState("all");
  const [state, change] = useState({ rows: [], next: 0 });
  const chosen = files.includes(file) ? file : files[0];
  const more = async (start, before) => {
    const part = await ask("predictions", { name: run.name, file: chosen, start });
    change({ file: chosen, rows: before.concat(part.rows), next: part.next });
  };
  useEffect(() => { more(0, []).catch(() => change({ rows: [], next: null })); }, [chosen, run.name]);
  const keeps = {
    all: () => true,
    onlyCalls: (row) => row.tool_call,
    onlyWrong: (row) => row.tool_call && row.tool_call !== "same",
    differing: (row) => row.prediction !== row.reference,
  };
  return html`<div class="bar"><label>${t().predictions} <select value=${chosen} onChange=${(event) => setFile(event.target.value)}>
      ${files.map((each) => html`<option value=${each} selected=${each === chosen}>${each.replace(".jsonl", "")}</option>`)}</select></label>
    <label>${t().filter} <select value=${filter} onChange=${(event) => setFilter(event.target.value)}>
      ${Object.keys(keeps).map((each) => html`<option value=${each}>${t()[each]}</option>`)}</select></label></div>
    ${state.rows.filter(keeps[filter]).map((row, index) => html`<article class="prediction" key=${`${row.where}-${row.turn}-${index}`}>
      <p class="faint">${row.where}${row.tool_call ? ` · ${row.tool_call}` : ""}</p>
      <dl><dt>${t().prompt}</dt><dd>${row.prompt}</dd><dt>${t().reference}</dt><dd>${row.reference}</dd>
        <dt>${t().answer}</dt><dd><${Differing} reference=${String(row.reference ?? "")} text=${String(row.prediction ?? "")} /></dd></dl></article>`)}
    ${state.next !== null && state.rows.length > 0 && html`<button onClick=${() => more(state.next, state.rows)}>${t().more}</button>`}`;
}

const order = (file) => Number(/\d+/.exec(file)?.[0] ?? Infinity);
