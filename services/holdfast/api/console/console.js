// Keeps the page as the API says it is. The API renders everything; this puts what has changed in place, so that
// what is open, focused or being typed stays. Commands are asked for in one dialog.

const $ = (id) => document.getElementById(id);
const SILENT_AFTER = 4000; // ms without a word, after which the page may be old
const LISTS = ["incidents", "models", "decisions"];
let view = new URLSearchParams(location.search);
let source = null;
let heardAt = Date.now();
let apart = null; // why the page is not live, where the API says so
let first = true;

document.documentElement.classList.add("scripted");

// What is shown

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

function morph(from, to) {
  if (from.isEqualNode(to)) return;
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) return from.replaceWith(to);
  if (from.nodeType === Node.TEXT_NODE) {
    from.data = to.data;
    return;
  }
  // Figures that run have newer values than the HTML; what is open was opened by a person.
  if (from.dataset?.live && from.dataset.live === to.dataset.live) return;
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && name !== "open") from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  const old = [...from.childNodes];
  const fresh = [...to.childNodes];
  fresh.forEach((node, index) => (old[index] ? morph(old[index], node) : from.append(node)));
  old.slice(fresh.length).forEach((node) => node.remove());
}

function arrange(list, keys, html) {
  const wanted = new Set(keys);
  for (const child of [...list.children]) if (!wanted.has(child.id)) child.remove();
  let place = list.firstElementChild;
  for (const key of keys) {
    let item = $(key);
    const fresh = html[key] && parse(html[key]);
    if (item === null) {
      if (!fresh) continue;
      item = fresh;
      if (!first) item.classList.add("fresh");
      list.insertBefore(item, place);
    } else {
      if (fresh) morph(item, fresh);
      item = $(key);
      if (item === place) place = place.nextElementSibling;
      else list.insertBefore(item, place);
    }
  }
}

function show(update) {
  const { lists, html } = update;
  for (const name of LISTS) arrange($(name), lists[name], html);
  for (const id of ["headline", ...LISTS.map((name) => `${name}-more`)]) {
    if (!html[id]) continue;
    const before = $(id).querySelector("h1")?.textContent;
    morph($(id), parse(html[id]));
    const after = $(id).querySelector("h1")?.textContent;
    if (before !== after) $("announce").textContent = after;
  }
  tellTime();
  first = false;
}

const number = (value) =>
  value.toLocaleString("en-US", { maximumFractionDigits: value < 100 ? 1 : 0 });

function tick({ second, models }) {
  let approved = 0;
  let blocked = 0;
  for (const [, , a, b] of Object.values(models)) {
    approved += a;
    blocked += b;
  }
  for (const [name, total] of [["approved", approved], ["blocked", blocked]]) {
    const figure = document.querySelector(`[data-total="${name}"]`);
    figure.textContent = number(total);
    if (name === "blocked") figure.classList.toggle("red", total > 0);
  }
  for (const box of document.querySelectorAll("[data-live]")) {
    const now = models[box.dataset.live];
    if (!now) continue;
    const [a, b, approvedRate, blockedRate] = now;
    box.querySelector(".approved b").textContent = number(approvedRate);
    box.querySelector(".blocked b").textContent = number(blockedRate);
    box.querySelector(".blocked").classList.toggle("red", blockedRate > 0);
    box.history ??= box.dataset.history.trim().split(" ").filter(Boolean).map((pair) => pair.split(",").map(Number));
    if (box.second === second) continue;
    box.second = second;
    box.history = [...box.history, [a, b]].slice(-60);
    draw(box);
  }
}

function draw(box) {
  const top = Math.max(1, ...box.history.map(([a, b]) => a + b));
  const paths = { a: "", b: "" };
  const start = 60 - box.history.length;
  box.history.forEach(([approved, blocked], index) => {
    let ground = 28;
    for (const [name, count] of [["b", blocked], ["a", approved]]) {
      if (!count) continue;
      const height = Math.max(1.5, (26 * count) / top);
      paths[name] += `M${2 * (start + index) + 1} ${ground.toFixed(1)}v-${height.toFixed(1)}`;
      ground -= height;
    }
  });
  for (const name of ["a", "b"]) box.querySelector(`.spark .${name}`).setAttribute("d", paths[name]);
}

function ago(at) {
  const seconds = (Date.now() - at) / 1000;
  const size = Math.abs(seconds);
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    if (size < length * (unit === "s" ? 2 : 1)) continue;
    const count = `${Math.floor(size / length)} ${unit}`;
    return seconds > 0 ? `${count} ago` : `in ${count}`;
  }
  return "just now";
}

function tellTime() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const text = ago(Date.parse(time.dateTime));
    const place = time.querySelector("[data-ago]");
    if (place && place.textContent !== text) place.textContent = text;
  }
}

// Staying live

const clock = (ms) => `${new Date(ms).toISOString().slice(11, 19)} UTC`;

function tellLive() {
  const silent = Date.now() - heardAt > SILENT_AFTER;
  const live = !silent && apart === null;
  const text = live ? "Live" : apart?.text ?? `Not live since ${clock(heardAt)}`;
  $("live").classList.toggle("on", live);
  $("live").classList.toggle("off", !live);
  if ($("live-text").textContent !== text) $("live-text").textContent = text;
}

function connect() {
  source?.close();
  source = new EventSource(`/events?${view}`);
  source.addEventListener("update", (event) => {
    heardAt = Date.now();
    const update = JSON.parse(event.data);
    if (update.lists) show(update);
    if (update.rates) tick(update.rates);
    apart = update.silent_since ? { text: `Kafka is silent since ${clock(Date.parse(update.silent_since))}` } : null;
    tellLive();
  });
  source.addEventListener("error", async () => {
    if (source.readyState !== EventSource.CLOSED) return; // it connects again by itself
    const ended = await fetch(location.pathname, { redirect: "manual" }).then((a) => a.type === "opaqueredirect", () => false);
    if (ended) {
      apart = { text: "Signed out. Reload to sign in" };
      tellLive();
    } else setTimeout(connect, 2000);
  });
}

function look(change) {
  for (const [name, value] of Object.entries(change)) value ? view.set(name, value) : view.delete(name);
  history.replaceState(null, "", view.size ? `/?${view}` : "/");
  connect();
}

let typing;
$("q").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => look({ q: $("q").value.trim() }), 150);
});
$("resolved").addEventListener("change", () => look({ resolved: $("resolved").checked ? "true" : "" }));
document.querySelector(".search").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-view]");
  if (!link) return;
  event.preventDefault();
  view = new URL(link.href).searchParams;
  look({});
});

// Commands

const dialog = $("command");
let asked = null;
let sending = null; // the request and its key: sent again while its fate is not known, it is carried out once

function ask(button) {
  asked = { ...button.dataset };
  sending = null;
  $("command-title").textContent = asked.title;
  $("command-effect").textContent = asked.effect;
  const wants = asked.wants.split(" ");
  for (const field of dialog.querySelectorAll("[data-field]")) field.hidden = !wants.includes(field.dataset.field);
  $("command-version").value = asked.version;
  $("command-version").required = wants.includes("version");
  const known = button.closest(".model")?.querySelectorAll(".versions th[scope=row]") ?? [];
  $("command-versions").replaceChildren(...[...known].map((cell) => new Option(cell.textContent.trim())));
  $("command-until").value = "";
  $("command-reason").value = "";
  $("command-problem").hidden = true;
  $("command-send").textContent = asked.label;
  $("command-send").classList.toggle("danger", "danger" in asked);
  $("command-send").disabled = false;
  dialog.showModal();
  (wants.includes("version") && !asked.version ? $("command-version") : $("command-reason")).focus();
}

async function send() {
  const body = { reason: $("command-reason").value.trim() };
  if (asked.incident && asked.command !== "unfence") body.incident_id = asked.incident;
  else {
    body.model = asked.model;
    const version = asked.wants.includes("version") ? $("command-version").value.trim() : asked.version;
    if (version) body.version = version;
    if (asked.policy) body.policy = asked.policy;
    if (asked.wants.includes("until") && $("command-until").value) body.lasts = $("command-until").value;
  }
  const content = JSON.stringify(body);
  if (sending?.content !== content) sending = { content, key: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` };
  $("command-send").disabled = true;
  $("command-send").textContent = "Waiting for the switch…";
  $("command-problem").hidden = true;
  let problem;
  try {
    const answer = await fetch(`/api/v1/commands/${asked.command}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": sending.key },
      body: content,
    });
    const told = await answer.json();
    if (answer.ok || answer.status === 409) sending = null;
    if (answer.ok) {
      dialog.close();
      toast(`Done: ${told.detail}.`);
    } else problem = told.detail;
  } catch {
    problem = "The API did not answer, so it is not known whether this was done. Send it again: it is carried out once.";
  }
  $("command-send").disabled = false;
  $("command-send").textContent = asked.label;
  if (problem) {
    $("command-problem").textContent = problem;
    $("command-problem").hidden = false;
  }
}

let toasting;
function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toasting);
  toasting = setTimeout(() => ($("toast").hidden = true), 6000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-command]");
  if (button) ask(button);
});
dialog.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("command-cancel").addEventListener("click", () => dialog.close());
addEventListener("keydown", (event) => {
  const elsewhere = !dialog.open && !event.target.closest?.("input, textarea, select");
  if (event.key === "/" && elsewhere) {
    event.preventDefault();
    $("q").focus();
  }
});

// An alert's link names an incident, which may not be among those that are shown.
const named = decodeURIComponent(location.hash.slice(1));
if (named && !$(named)) {
  $("q").value = named;
  look({ q: named });
} else connect();
$(named)?.querySelector("details")?.setAttribute("open", "");
tellTime();
setInterval(tellTime, 5000);
setInterval(tellLive, 1000);
