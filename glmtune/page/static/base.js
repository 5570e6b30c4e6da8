// What every part of the page stands on: Preact, the language, the server, what is kept, and the address.
import { h, render, Fragment } from "./vendor/preact.mjs";
import { useEffect, useMemo, useRef, useState } from "./vendor/hooks.mjs";
import htm from "./vendor/htm.mjs";
import { TEXTS } from "./texts.js";

export const html = htm.bind(h);
export { render, Fragment, useEffect, useMemo, useRef, useState };

const read = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const write = (name, value) => { try { localStorage.setItem(name, value); } catch { /* a private window: not kept */ } };

export const settings = {
  language: read("glmtune-language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"),
  theme: read("glmtune-theme") ?? "system",
  key: read("glmtune-key") ?? "",
};
const listeners = new Set();
export const set = (name, value) => {
  settings[name] = value;
  write(`glmtune-${name}`, value);
  listeners.forEach((listener) => listener());
};
export const useSettings = () => {
  const [, again] = useState(0);
  useEffect(() => {
    const listener = () => again((number) => number + 1);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
  return settings;
};
export const t = () => TEXTS[settings.language];

// The key stands behind `#key=` once; it goes from the address into what the browser keeps for this page.
const given = /^#key=([^&]+)/.exec(location.hash);
if (given) {
  set("key", decodeURIComponent(given[1]));
  history.replaceState(null, "", "#/");
}

export class Refused extends Error {
  constructor(status, told) {
    super(told.what ?? String(status));
    this.status = status;
    this.told = told;
  }
}

export const ask = async (path, parameters = {}, options = {}) => {
  const answer = await fetch(`api/${path}?${new URLSearchParams(parameters)}`, {
    ...options,
    headers: { Authorization: `Bearer ${settings.key}` },
    cache: "no-store",
  });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, body);
  return body;
};

// Asks again and again while the page is looked at; what was known stays while the server is away.
export const usePolled = (work, seconds, dependencies) => {
  const [state, change] = useState({ value: null, error: null });
  useEffect(() => {
    let isOver = false;
    let timer = 0;
    change({ value: null, error: null });
    const turn = async () => {
      try {
        const value = await work();
        if (!isOver) change({ value, error: null });
      } catch (error) {
        if (!isOver) change((before) => ({ value: before.value, error }));
      }
      if (!isOver) timer = setTimeout(turn, seconds * 1000);
    };
    const wake = () => {
      clearTimeout(timer);
      if (!document.hidden) turn();
    };
    document.addEventListener("visibilitychange", wake);
    turn();
    return () => {
      isOver = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", wake);
    };
  }, dependencies);
  return state;
};

// The address holds what is looked at: `#/run/NAME?axis=time`.
const parse = () => {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [page, ...rest] = path.split("/");
  return { page: page || "runs", name: decodeURIComponent(rest.join("/")), query: new URLSearchParams(query ?? "") };
};
export const useAddress = () => {
  const [address, change] = useState(parse());
  useEffect(() => {
    const listener = () => change(parse());
    addEventListener("hashchange", listener);
    return () => removeEventListener("hashchange", listener);
  }, []);
  return address;
};
export const link = (page, name = "", query = {}) => {
  const search = new URLSearchParams(Object.entries(query).filter(([, value]) => value)).toString();
  return `#/${page === "runs" ? "" : `${page}/`}${name.split("/").map(encodeURIComponent).join("/")}${search && `?${search}`}`;
};
export const goTo = (address) => history.replaceState(null, "", address) ?? dispatchEvent(new HashChangeEvent("hashchange"));

export const ago = (when) => {
  const seconds = Math.max(0, Date.now() / 1000 - when);
  const zh = settings.language === "zh";
  for (const [size, unit, chinese] of [[86400, "d", "天"], [3600, "h", "小时"], [60, "min", "分钟"]]) {
    if (seconds >= size) return zh ? `${Math.round(seconds / size)} ${chinese}前` : `${Math.round(seconds / size)} ${unit} ago`;
  }
  return zh ? `${Math.round(seconds)} 秒前` : `${Math.round(seconds)} s ago`;
};
export const duration = (seconds) => {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  return `${hours}:${String(minutes).padStart(2, "0")}:${String(whole % 60).padStart(2, "0")}`;
};
export const bytes = (number) => (number >= 1e9 ? `${(number / 1e9).toFixed(1)} GB` : `${(number / 1e6).toFixed(1)} MB`);
export const figure = (value) => (value === null || value === undefined ? "–"
  : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4))));

// Text with `code` in it.
export const withCode = (text) => text.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));
