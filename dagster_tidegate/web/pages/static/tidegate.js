// Keeps a page up to date: an event of the stream names the fragments to fetch again, and what
// changed in them is changed in the page, so that focus, scroll and what is being typed survive.
"use strict";

const FRAGMENTS = "X-Tidegate-Fragments";
const SOON_MS = 60; // one outage writes many events at once
const LATEST_MS = 400;
const RETRY_MS = 2000;
const TICK_MS = 1000;
const KINDS = [
  "service", "hold", "campaign_run", "takeover", "start", "cancel", "records", "location",
];

document.getElementById("still")?.remove();
const live = document.getElementById("live");
const away = document.getElementById("away");
const due = new Set();
let timer = 0;
let firstDue = 0;
let fetching = null; // what ends the request in flight
let isUrgent = false;
let shownAt = new Date();
let isFirst = true; // the stream begins with the first event that the page does not show

function fragments() {
  return [...document.querySelectorAll("[data-fragment]")];
}

function tell(text, ok) {
  live.hidden = false;
  live.classList.toggle("lost", !ok);
  document.getElementById("live-text").textContent = text;
}

// An event is urgent: it does not wait for a request of the clock, which may answer without it.
function refresh(names, urgent = false) {
  for (const name of names) due.add(name);
  if (urgent && names.length) {
    if (fetching && !fetching.urgent) fetching.abort();
    isUrgent = true;
  }
  if (!due.size || fetching) return;
  firstDue ||= Date.now();
  clearTimeout(timer);
  timer = setTimeout(fetchDue, Math.min(SOON_MS, Math.max(0, firstDue + LATEST_MS - Date.now())));
}

async function fetchDue() {
  const names = [...due];
  due.clear();
  firstDue = 0;
  fetching = Object.assign(new AbortController(), { urgent: isUrgent });
  isUrgent = false;
  try {
    const answer = await fetch(location.href, {
      signal: fetching.signal,
      headers: { [FRAGMENTS]: names.join(","), Accept: "text/html" },
      redirect: "manual",
    });
    if (answer.type === "opaqueredirect") return location.reload(); // the session has ended
    if (!answer.ok) throw new Error(answer.status === 503 ? "the store is unreachable" : `status ${answer.status}`);
    const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
    const focused = document.activeElement;
    for (const fresh of parsed.querySelectorAll("[data-fragment]")) {
      const old = document.getElementById(fresh.id);
      if (old) morph(old, fresh);
    }
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    shownAt = new Date();
    away.hidden = true;
    tick();
  } catch (error) {
    if (error.name === "AbortError") return refresh(names);
    const time = shownAt.toISOString().slice(11, 19);
    away.textContent = `This page is of ${time} UTC, and can't be refreshed: ${error.message}. It tries again by itself.`;
    away.hidden = false;
    setTimeout(() => refresh(names), RETRY_MS);
  } finally {
    fetching = null;
    refresh([]);
  }
}

// Make one element equal to another. Elements with an id stay themselves wherever they move.
function morph(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const byId = new Map();
  for (const child of old.children) if (child.id) byId.set(child.id, child);
  let place = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const known = wanted.id && byId.get(wanted.id);
    if (known && known.nodeName === wanted.nodeName) {
      // White space in the way would make it move, and what moves loses the focus.
      while (place && place !== known && place.nodeType === Node.TEXT_NODE) {
        const next = place.nextSibling;
        place.remove();
        place = next;
      }
      if (known !== place) old.insertBefore(known, place);
      else place = place.nextSibling;
      morph(known, wanted);
    } else if (place && alike(place, wanted)) {
      if (place.nodeType === Node.ELEMENT_NODE) morph(place, wanted);
      else if (place.data !== wanted.data) place.data = wanted.data;
      place = place.nextSibling;
    } else {
      old.insertBefore(document.importNode(wanted, true), place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function alike(old, wanted) {
  return old.nodeType === wanted.nodeType && old.nodeName === wanted.nodeName && !old.id && !wanted.id;
}

// The same words as on the server.
function inWords(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return `${s} s`;
  const minutes = Math.floor(s / 60), hours = Math.floor(s / 3600);
  if (hours < 2) return `${minutes} min`;
  if (hours < 48) return `${hours} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
  return `${Math.floor(hours / 24)} d${hours % 24 ? ` ${hours % 24} h` : ""}`;
}

function tick() {
  const now = Date.now();
  for (const time of document.querySelectorAll("time[data-until], time[data-ago]")) {
    const left = (Date.parse(time.dateTime) - now) / 1000;
    let text;
    if ("until" in time.dataset) text = left > 0 ? `in ${inWords(left)}` : "now";
    else text = left > -1 ? "just now" : `${inWords(-left)} ago`;
    if (time.textContent !== text) time.textContent = text;
  }
}

function listen() {
  const stream = new EventSource(document.body.dataset.stream);
  stream.onopen = () => {
    tell("Live", true);
    if (!isFirst) refresh(fragments().map((each) => each.dataset.fragment)); // what happened meanwhile
    isFirst = false;
  };
  stream.onerror = () => {
    tell("Reconnecting", false);
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  };
  for (const kind of KINDS) {
    stream.addEventListener(kind, (event) => {
      const names = fragments().filter((each) => (each.dataset.on || "").split(" ").includes(kind));
      refresh(names.map((each) => each.dataset.fragment), true);
      if (kind === "service") {
        const { name, to_status: status } = JSON.parse(event.data);
        document.getElementById("spoken").textContent = `${name} is now ${status.replace("_", " ")}`;
      }
    });
  }
}

if (document.body.dataset.stream && fragments().length) {
  const since = new Map();
  listen();
  setInterval(() => {
    tick();
    if (document.hidden) return;
    const now = Date.now();
    for (const each of fragments()) {
      const every = 1000 * (each.dataset.every || 0);
      const name = each.dataset.fragment;
      if (!since.has(name)) since.set(name, now);
      if (every && now - since.get(name) >= every) {
        since.set(name, now);
        refresh([name]);
      }
    }
  }, TICK_MS);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refresh(fragments().map((each) => each.dataset.fragment));
  });
}

// A filter is applied as soon as it is chosen.
for (const choice of document.querySelectorAll("form[data-filter] select")) {
  choice.addEventListener("change", () => choice.form.requestSubmit());
}
