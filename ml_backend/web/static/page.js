// Keeps the page live. Everything here is a convenience: without it, the page works by links and forms.
"use strict";

const body = document.body;
const project = body.dataset.project;
const live = document.getElementById("live");
const OVER = ["finished", "failed", "cancelled"];
const POLL_MS = 4000, AGAIN_MS = 15000, TURN_MS = 250, GATHER_MS = 400;

// -- events for parts of the page: many at once are one

const pending = new Set();
let gathering = 0;
function changed(name) {
  pending.add(name);
  gathering ||= setTimeout(() => {
    gathering = 0;
    for (const each of pending) body.dispatchEvent(new CustomEvent(`live-${each}`));
    pending.clear();
  }, GATHER_MS);
}

// -- jobs: whoever shows what a kind of job makes hears when one has ended

let known = null;
function hear(jobs, gone, all) {
  const first = known === null;
  const before = known ?? new Map();
  const now = all ? new Map() : new Map(before);
  for (const job of jobs) {
    now.set(job.id, job);
    const old = before.get(job.id);
    if (!first && OVER.includes(job.state) && (!old || old.state !== job.state || old.ended_at !== job.ended_at)) changed(job.kind);
  }
  for (const id of all ? [...before.keys()].filter((name) => !now.has(name)) : gone) {
    if (before.has(id)) changed(before.get(id).kind);
    now.delete(id);
  }
  known = now;
  if (first) {
    // What has happened between drawing the page and listening to it.
    const drawn = new Date(performance.timeOrigin).getTime() - 2000;
    for (const job of jobs) if (job.ended_at && new Date(job.ended_at).getTime() > drawn) changed(job.kind);
  }
  changed("jobs");
}

// -- one stream of events; a list of jobs every few seconds where none is to be had

const query = project ? `?project=${project}` : "";
let source = null, polling = 0, again = 0, turn = 0, current = null;

function say(words, on) {
  if (live.textContent !== words) live.textContent = words;
  live.classList.toggle("on", on);
}
function listen() {
  stop();
  if (document.hidden) return;
  const stream = source = new EventSource(`/api/events${query}`);
  stream.onopen = () => say(body.dataset.live, true);
  stream.addEventListener("jobs", (event) => {
    const news = JSON.parse(event.data);
    hear(news.jobs, news.gone, news.all);
  });
  stream.addEventListener("status", () => changed("status"));
  stream.addEventListener("version", (event) => {
    const used = JSON.parse(event.data).current;
    if (current !== null && used !== current) changed("current");
    current = used;
    changed("version");
  });
  stream.onerror = () => {
    if (stream.readyState !== EventSource.CLOSED) return say(body.dataset.away, false);
    poll();
    again = setTimeout(listen, AGAIN_MS);
  };
}
async function poll() {
  const mine = turn;
  let jobs = null;
  try {
    const answer = await fetch(`/api/jobs${query}`);
    if (answer.ok) ({ jobs } = await answer.json());
  } catch {
    jobs = null; // no answer, or half of one: said below
  }
  if (mine !== turn) return; // it was stopped meanwhile
  if (jobs) {
    hear(jobs, [], true);
    for (const name of ["status", "version", "current"]) changed(name);
  }
  say(jobs ? body.dataset.polling : body.dataset.away, false);
  polling = setTimeout(poll, POLL_MS);
}
function stop() {
  turn += 1;
  source?.close();
  clearTimeout(polling);
  clearTimeout(again);
}
// A page that nobody looks at takes no listener's place.
document.addEventListener("visibilitychange", () => (document.hidden ? stop() : listen()));
addEventListener("pagehide", stop);
// Nor does one that is turned at once.
again = setTimeout(listen, TURN_MS);

// -- small comforts

document.addEventListener("change", (event) => {
  const field = event.target;
  if (field.matches("[data-submit]")) field.form.requestSubmit();
  if (field.matches("[data-all]"))
    for (const box of field.form.querySelectorAll(`[name=${field.dataset.all}]`)) box.checked = field.checked;
});
for (const item of document.querySelectorAll("[data-hide]")) item.hidden = true;

document.addEventListener("click", (event) => {
  const follow = event.target.closest("[data-follow]");
  if (follow) document.getElementById(follow.dataset.follow).scrollIntoView({ block: "start" });
  const both = event.target.closest("[data-both]");
  if (both) {
    const videos = [...both.parentElement.querySelectorAll("video")];
    const paused = videos.every((video) => video.paused);
    for (const video of videos) {
      video.currentTime = videos[0].currentTime;
      paused ? video.play() : video.pause();
    }
  }
});

const upload = document.getElementById("upload-progress");
document.addEventListener("htmx:xhr:progress", (event) => {
  if (event.target.id !== "upload" || !event.detail.lengthComputable) return;
  upload.classList.add("on");
  upload.value = event.detail.loaded / event.detail.total;
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.target.id !== "upload") return;
  upload.classList.remove("on");
  if (event.detail.successful) event.target.reset();
});

// -- what somebody has chosen stays: a part is drawn anew with the parameters of its last request, and when nobody is
// at it

const partOf = (item) => item?.closest?.(".part");
function busy(part) {
  return (
    "dirty" in part.dataset ||
    (part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")) ||
    [...part.querySelectorAll("video")].some((video) => !video.paused && !video.ended)
  );
}
function release(part) {
  if (!part?.isConnected || !("late" in part.dataset) || busy(part)) return;
  delete part.dataset.late;
  htmx.trigger(part, "late");
}
function postponed(event) {
  const part = event.detail.requestConfig.elt;
  if (!part.matches(".part") || !busy(part)) return false;
  part.dataset.late = "";
  return true;
}
for (const name of ["input", "change"])
  document.addEventListener(name, (event) => {
    const part = partOf(event.target);
    if (part) part.dataset.dirty = "";
  });
document.addEventListener("focusout", (event) => setTimeout(() => release(partOf(event.target))));
for (const name of ["pause", "ended"]) document.addEventListener(name, (event) => release(partOf(event.target)), true);
document.addEventListener("htmx:configRequest", (event) => {
  const { elt } = event.detail;
  if (elt.matches(".part") && elt.dataset.last) event.detail.path = elt.dataset.last;
});
document.addEventListener("htmx:beforeRequest", (event) => {
  if (postponed(event)) event.preventDefault();
});
document.addEventListener("htmx:afterRequest", (event) => {
  const { elt, target, pathInfo, successful } = event.detail;
  if (!successful) return;
  if (target.matches(".part")) {
    const last = new URL(pathInfo.finalRequestPath, location.href);
    last.searchParams.delete("fresh"); // asked for once
    target.dataset.last = last.pathname + last.search;
  }
  if (!elt.matches("form")) return;
  for (const part of [partOf(elt), target, ...elt.querySelectorAll(".part")]) {
    if (!part?.matches(".part")) continue;
    delete part.dataset.dirty;
    release(part);
  }
});

// What is open stays open, and where the keyboard is, when a part is drawn anew.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (postponed(event)) {
    event.detail.shouldSwap = false;
    return;
  }
  // Somebody asks for other contents of the part: what was chosen in it goes.
  if (event.detail.shouldSwap && event.detail.target.matches(".part")) delete event.detail.target.dataset.dirty;
  const open = [...event.detail.target.querySelectorAll("details")].map((item) => item.open);
  const held = document.activeElement?.id;
  if (event.detail.target.contains(document.activeElement) || open.includes(true))
    event.detail.target.addEventListener("htmx:afterSwap", () => {
      event.detail.target.querySelectorAll("details").forEach((item, number) => { item.open = open[number] ?? false; });
      if (held) document.getElementById(held)?.focus({ preventScroll: true });
    }, { once: true });
});

// Times as they are here.
function local(root) {
  for (const item of root.querySelectorAll?.("time[datetime]") ?? [])
    item.textContent = new Date(item.dateTime).toLocaleString(document.documentElement.lang, { dateStyle: "short", timeStyle: "short" });
}
document.addEventListener("htmx:afterSwap", (event) => local(event.detail.target));
local(document);
