// The frame of the page: who may see it, which screen, language and theme.
import { ask, html, render, set, settings, t, useAddress, useEffect, usePolled, useSettings, useState, withCode } from "./base.js";
import { CurvesPage, RunPage } from "./run.js";
import { RunsPage } from "./runs.js";

const PAGES = { runs: RunsPage, run: RunPage, curves: CurvesPage };
const THEMES = ["system", "light", "dark"];

function App() {
  useSettings();
  const address = useAddress();
  const { value: about, error } = usePolled(() => ask("about"), 10, [settings.key]);
  useEffect(() => {
    document.documentElement.lang = settings.language === "zh" ? "zh-CN" : "en";
    document.documentElement.dataset.theme = settings.theme;
    document.title = address.name ? `${address.name} · glmtune` : "glmtune";
  });
  const Page = PAGES[address.page] ?? RunsPage;
  return html`
    <header><nav><a class="brand" href="#/">${t().title}</a> <a href="#/" aria-current=${address.page === "runs" ? "page" : undefined}>${t().runs}</a>
      ${about?.read_only && html`<span class="faint">${t().readOnly}</span>`}</nav>
      <div class="tools"><button lang=${settings.language === "zh" ? "en" : "zh-CN"} title=${t().languageTitle}
          onClick=${() => set("language", settings.language === "zh" ? "en" : "zh")}>${t().language}</button>
        <label>${t().theme} <select value=${settings.theme} onChange=${(event) => set("theme", event.target.value)}>
          ${THEMES.map((each) => html`<option value=${each} selected=${each === settings.theme}>${t().themes[each]}</option>`)}</select></label></div></header>
    <main>${error?.status === 401 ? html`<${KeyForm} />`
      : error && !about ? html`<p class="banner" role="status">${t().away}</p>`
      : !about ? html`<p class="faint" aria-busy="true">…</p>`
      : html`<${Page} about=${about} address=${address} />`}</main>`;
}

function KeyForm() {
  const [key, setKey] = useState("");
  const open = (event) => {
    event.preventDefault();
    set("key", key.trim().replace(/^.*#key=/, ""));
  };
  return html`<form class="empty" onSubmit=${open}><h1>${t().keyTitle}</h1><p>${withCode(t().keyHint)}</p>
    <label>${t().key} <input type="password" autocomplete="off" value=${key} onInput=${(event) => setKey(event.target.value)} /></label>
    <button>${t().open}</button></form>`;
}

render(html`<${App} />`, document.getElementById("app"));
