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
let source = null, polling = 0, again = 0;

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
  for (const name of ["status", "version"]) stream.addEventListener(name, () => changed(name));
  stream.onerror = () => {
    if (stream.readyState !== EventSource.CLOSED) return say(body.dataset.away, false);
    poll();
    again = setTimeout(listen, AGAIN_MS);
  };
}
async function poll() {
  try {
    const answer = await fetch(`/api/jobs${query}`);
    if (!answer.ok) throw new Error(answer.statusText);
    hear((await answer.json()).jobs, [], true);
    changed("status");
    changed("version");
    say(body.dataset.polling, false);
  } catch {
    say(body.dataset.away, false);
  }
  polling = setTimeout(poll, POLL_MS);
}
function stop() {
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

// What is open stays open, and where the keyboard is, when a part is drawn anew.
document.addEventListener("htmx:beforeSwap", (event) => {
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
