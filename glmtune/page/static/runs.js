// All runs: a card each, and the curves of those that are chosen over each other.
import { ago, ask, duration, figure, html, link, t, usePolled, useState, withCode } from "./base.js";

export const ORDER = ["running", "silent", "stopped", "failed", "killed", "finished"];

export function State({ run }) {
  const phase = run.state === "running" && run.phase !== "training" ? t().phases[run.phase] : null;
  return html`<span class="state ${run.state}">${phase ?? t().states[run.state]}</span>`;
}

export function Progress({ run }) {
  if (!run.total_steps) return null;
  const share = Math.min(1, run.step / run.total_steps);
  return html`<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax=${run.total_steps}
    aria-valuenow=${run.step} aria-label="${t().step} ${run.step}/${run.total_steps}"><i style=${{ width: `${100 * share}%` }}></i></div>`;
}

export function RunsPage({ about, address }) {
  const { value, error } = usePolled(() => ask("runs"), 2, []);
  const [filter, setFilter] = useState("");
  const [sort, setSort] = useState("updated");
  const chosen = new Set((address.query.get("with") ?? "").split("|").filter(Boolean));
  if (error?.status === 401) throw error;
  if (!value) return html`<p class="faint" aria-busy="true">…</p>`;
  if (!value.length) {
    return html`<section class="empty"><h1>${t().noRuns} <code>${about?.root}</code></h1>
      <p>${t().noRunsHint}</p><pre>glmtune train data/demo demo configs/lora.yaml</pre></section>`;
  }
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (run) => `${run.name} ${run.state} ${run.method} ${run.model}`.toLowerCase();
  const by = {
    updated: (one, other) => other.updated - one.updated,
    name: (one, other) => one.name.localeCompare(other.name),
    loss: (one, other) => (one.loss ?? Infinity) - (other.loss ?? Infinity),
  };
  const shown = value.filter((run) => words.every((word) => text(run).includes(word))).sort(by[sort]);
  const choose = (name) => {
    if (!chosen.delete(name)) chosen.add(name);
    location.replace(link("runs", "", { with: [...chosen].join("|") }));
  };
  return html`
    <h1 class="sr">${t().runs}</h1>
    ${error && html`<p class="banner" role="status">${t().away}</p>`}
    <div class="bar">
      <label>${t().filter} <input type="search" value=${filter} onInput=${(event) => setFilter(event.target.value)} /></label>
      <label>${t().sort} <select value=${sort} onChange=${(event) => setSort(event.target.value)}>
        ${Object.entries(t().sorts).map(([name, told]) => html`<option value=${name}>${told}</option>`)}</select></label>
      ${chosen.size > 1 && html`<a class="button" href=${link("curves", "", { with: [...chosen].join("|") })}>${t().compare} (${chosen.size})</a>`}
    </div>
    <ul class="cards">${shown.map((run) => html`<${Card} key=${run.name} run=${run} isChosen=${chosen.has(run.name)} onChoose=${() => choose(run.name)} />`)}</ul>`;
}

function Card({ run, isChosen, onChoose }) {
  const name = run.name === "." ? run.folder.split("/").pop() : run.name;
  return html`<li class="card">
    <div class="row"><h2><a href=${link("run", run.name)}>${name}</a></h2><${State} run=${run} /></div>
    <${Progress} run=${run} />
    <p class="facts"><span>${t().step} <b>${run.step}${run.total_steps ? `/${run.total_steps}` : ""}</b></span>
      <span>${t().loss} <b>${figure(run.loss)}</b></span>
      <span>${run.method || "–"}</span><span class="long">${run.model || "–"}</span></p>
    ${run.error && html`<p class="error">${run.error.what}</p>`}
    <div class="row faint"><span>${t().updated} ${ago(run.updated)}${run.host ? ` · ${run.host}` : ""}</span>
      <label class="choose"><input type="checkbox" checked=${isChosen} onChange=${onChoose} aria-label="${t().choose} ${name}" /> ${t().choose}</label></div>
  </li>`;
}

export function Hint({ run }) {
  const hint = { silent: t().silentHint, killed: run.checkpoint && t().killedHint, stopped: run.checkpoint && t().stoppedHint }[run.state];
  return hint ? html`<p class="faint">${withCode(hint)}</p>` : null;
}

export const remaining = (logs, run) => {
  // By the time between the logs of this stretch: an evaluation in between counts, as it will again.
  const timed = logs.filter((log) => typeof log.time === "number" && typeof log.loss === "number").slice(-50);
  if (timed.length < 2 || run.state !== "running") return null;
  const [first, last] = [timed[0], timed[timed.length - 1]];
  if (last.step <= first.step) return null;
  return duration(((last.time - first.time) / (last.step - first.step)) * (run.total_steps - run.step));
};
