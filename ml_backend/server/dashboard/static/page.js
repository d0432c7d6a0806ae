// Keeps the page live. Optional: without scripts, the page works by links and forms.
"use strict";

// -- poll for changes every two seconds, and reload the parts that show them

const live = document.getElementById("live");
let marks = JSON.parse(live.dataset.marks);
live.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden) event.preventDefault(); // hidden pages do not poll
});
live.addEventListener("htmx:afterRequest", ({ detail }) => {
  const words = detail.successful ? live.dataset.live : live.dataset.away;
  if (live.textContent !== words) live.textContent = words; // screen readers announce each change once
  live.classList.toggle("on", detail.successful);
  if (!detail.successful) return;
  const before = marks;
  marks = JSON.parse(detail.xhr.responseText);
  for (const name of Object.keys({ ...before, ...marks }))
    if (before[name] !== marks[name]) htmx.trigger(document.body, `live-${name}`);
});

// -- form and video helpers

document.addEventListener("change", (event) => {
  const field = event.target;
  if (field.matches("[data-submit]")) field.form.requestSubmit();
  if (field.matches("[data-all]"))
    for (const box of field.form.querySelectorAll(`[name=${field.dataset.all}]`)) box.checked = field.checked;
});
function hide(root) {
  for (const item of root.querySelectorAll?.("[data-hide]") ?? []) item.hidden = true;
}
document.addEventListener("htmx:afterSwap", (event) => hide(event.detail.target));
hide(document);

document.addEventListener("click", (event) => {
  const follow = event.target.closest("[data-follow]");
  if (follow) document.getElementById(follow.dataset.follow).scrollIntoView({ block: "start" });
});

// -- compared videos play, pause and seek together, whichever one's controls are used

const sent = new WeakMap(); // video -> where the other one has sent it: its own seeking is not followed
function follow({ type, target: video }) {
  const time = video.currentTime;
  if (type === "seeking" && Math.abs(time - sent.get(video)) < 0.01) return;
  for (const other of video.closest(".players.two")?.querySelectorAll("video") ?? []) {
    if (other === video || (type !== "seeking" && other.paused === (type === "pause"))) continue;
    if (type === "pause") {
      if (video.ended) continue; // a longer one goes on
      other.pause(); // and stands at the same frame: on a busy machine one may be ahead
    }
    if (Math.abs(other.currentTime - time) > 0.01) {
      sent.set(other, Math.min(time, other.duration));
      other.currentTime = time;
    }
    if (!video.paused && !(time >= other.duration)) other.play().catch(() => {}); // refused if it is paused meanwhile
  }
}
for (const name of ["play", "pause", "seeking"]) document.addEventListener(name, follow, true); // they do not bubble

// -- uploads: one request a file, so that one that fails does not stop the others

const upload = document.getElementById("upload-progress");
const files = [];
let failed = false; // one of them
document.addEventListener("htmx:configRequest", ({ target, detail }) => {
  if (target.id !== "upload") return;
  if (!files.length) {
    files.push(...target.elements.file.files);
    failed = false;
  }
  if (files.length) detail.formData.set("file", files[0]);
});
document.addEventListener("htmx:xhr:progress", (event) => {
  if (event.target.id !== "upload" || !event.detail.lengthComputable) return;
  upload.classList.add("on");
  upload.value = event.detail.loaded / event.detail.total;
});
document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  if (detail.requestConfig.elt.id === "upload" && failed) detail.swapOverride = "beforeend"; // keep what failed before
});
document.addEventListener("htmx:afterRequest", ({ target, detail }) => {
  if (target.id !== "upload") return;
  upload.classList.remove("on");
  const { name } = files.shift() ?? {};
  if (!detail.successful) {
    failed = true;
    const said = notice.lastElementChild?.firstElementChild;
    if (name && said && !said.textContent.includes(name)) said.prepend(`${name}: `);
  }
  if (files.length) setTimeout(() => htmx.trigger(target, "submit"));
  else target.reset();
});

// -- messages

const messages = document.getElementById("messages");
const notice = document.getElementById("notice");
let said = ""; // the jobs' messages, as the server last sent them
let pressed = false; // what comes next answers the user
document.addEventListener("htmx:beforeRequest", ({ detail }) => {
  if (detail.elt.matches("form[method=post]")) pressed = true;
});
document.addEventListener("htmx:sendError", ({ detail }) => {
  if (detail.elt.matches("form")) notice.replaceChildren(document.getElementById("unreachable").content.cloneNode(true));
});
function show(target) {
  if (!pressed || !messages.contains(target) || !target.querySelector(".message")) return;
  pressed = false;
  messages.scrollIntoView({ block: "nearest" }); // in a narrow window they are above the page
}
document.addEventListener("htmx:afterSwap", ({ target }) => show(target));
document.addEventListener("click", (event) => {
  const close = event.target.closest("[data-close]");
  if (!close) return;
  event.preventDefault();
  close.closest(".message").remove();
  messages.focus({ preventScroll: true });
});

// -- review: each answer by one key, once per moment

document.addEventListener("keydown", (event) => { // without scripts it presses the first button, the least harmful one
  if (event.key === "Enter" && event.target.matches("[name=tracks], [name=exemplars], [data-all=tracks]")) event.preventDefault();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input:not([type=checkbox]), select, textarea, [contenteditable], svg.map")) return;
  const button = [...document.querySelectorAll("[data-key]")].find((item) => item.dataset.key === event.key.toLowerCase());
  if (!button || button.closest("[data-answered]") || (event.repeat && !("step" in button.dataset))) return;
  event.preventDefault();
  button.click();
});
document.addEventListener("htmx:beforeRequest", ({ detail }) => {
  if (detail.elt.matches("form[method=post]")) detail.elt.closest("[data-moment]")?.setAttribute("data-answered", "");
});
document.addEventListener("htmx:afterRequest", ({ detail }) => {
  if (!detail.elt.closest("#part-moments")) return;
  if (detail.successful) pressed = false; // the next moment is the answer
  else detail.elt.closest("[data-moment]")?.removeAttribute("data-answered");
});

// A clip is rendered when it is first asked for, which may take longer than the request.
document.addEventListener("error", ({ target }) => {
  if (!target.matches?.("article video[data-clip]")) return;
  const tries = Number(target.dataset.tries ?? 0);
  target.dataset.tries = tries + 1;
  if (tries < 5) setTimeout(() => target.load(), 2000);
  else target.nextElementSibling?.toggleAttribute("hidden", false);
}, true);

// -- timeline: step through the frames, ahead of what is shown; choose tracks in the list or the picture

let wanted = 0; // the frame that is asked for; 0: none
const frameShown = () => document.querySelector("[data-frame]");
function showFrame(number) {
  const { dataset } = frameShown();
  const asked = wanted;
  wanted = Math.min(Math.max(Math.round(number), 1), Number(dataset.frames));
  if (!asked && wanted !== Number(dataset.frame)) askFor(wanted);
  else if (!asked) wanted = 0;
}
function askFor(number) {
  document.getElementById("go-frame").value = number;
  document.getElementById("go").requestSubmit();
}
function settle() {
  const shown = frameShown();
  if (!shown) return;
  const { frame, frames } = shown.dataset;
  const at = `${(100 * (frame - 0.5)) / frames}%`;
  for (const line of document.querySelectorAll("line.now")) for (const name of ["x1", "x2"]) line.setAttribute(name, at);
  const chosen = new Set([...document.querySelectorAll("[name=tracks]:checked")].map((box) => box.dataset.track));
  for (const box of shown.querySelectorAll("g")) box.classList.toggle("chosen", chosen.has(box.dataset.track));
  const count = document.getElementById("chosen-tracks");
  if (count) count.textContent = chosen.size;
}
document.addEventListener("htmx:afterSettle", ({ target }) => { // a form that was swapped in sends by htmx from now on
  settle();
  if (target.id !== "part-frame") return;
  const shown = Number(frameShown()?.dataset.frame ?? 0);
  const image = document.querySelector("[data-frame-image]");
  for (const ahead of [1, -1, 2, 3]) if (image) new Image().src = image.src.replace(/frame=\d+/, `frame=${Math.max(shown + ahead, 1)}`);
  if (wanted && wanted !== shown) askFor(wanted);
  else wanted = 0;
});
document.addEventListener("htmx:afterRequest", ({ target, detail }) => {
  if (target.id === "part-frame" && !detail.successful) wanted = 0;
});
document.addEventListener("change", settle);
document.addEventListener("click", (event) => {
  const step = event.target.closest("[data-step]");
  const track = event.target.closest("g[data-track]");
  const life = event.target.closest("svg.life");
  if (step) {
    event.preventDefault();
    showFrame((wanted || Number(frameShown().dataset.frame)) + Number(step.dataset.step));
  } else if (track) {
    document.getElementById(`track-${track.dataset.track}`)?.click();
  } else if (life) {
    const { left, width } = life.getBoundingClientRect();
    showFrame(((event.clientX - left) / width) * frameShown().dataset.frames + 0.5);
  }
});
document.addEventListener("error", ({ target }) => {
  if (!target.matches?.("[data-frame-image]")) return;
  const tries = Number(target.dataset.tries ?? 0);
  target.dataset.tries = tries + 1;
  if (tries < 5) setTimeout(() => { target.src = target.src; }, 2000); // it is being rendered
  else target.parentElement.querySelector("[hidden]")?.toggleAttribute("hidden", false);
}, true);
settle();

// -- the map: one stop of the Tab key, arrow keys within

const pointsOf = (item) => [...(item.closest("svg.map")?.querySelectorAll("a") ?? [])];
function rove(root) {
  for (const map of root.querySelectorAll?.("svg.map") ?? [])
    for (const point of map.querySelectorAll("a:not(:first-of-type)")) point.setAttribute("tabindex", "-1");
}
document.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const points = step && event.target.closest ? pointsOf(event.target) : [];
  const next = points.at((points.indexOf(event.target) + step) % points.length);
  if (!next) return;
  event.preventDefault();
  event.target.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
});
document.addEventListener("htmx:afterSwap", (event) => rove(event.detail.target));
rove(document);

// -- choose points of the map by drawing around them or with the space bar, and count what is ticked for the forms of many

const chosenIn = (form) => [...form.elements].filter((item) => /^(tracks|exemplars)$/.test(item.name) && (item.type === "hidden" || item.checked));
function count() {
  for (const output of document.querySelectorAll("output[data-count]")) {
    output.parentElement.hidden = false;
    output.textContent = new Set(chosenIn(output.form).map((item) => item.value)).size;
  }
}
function pick(point, on) {
  const form = document.getElementById("act-exemplars");
  if (!form || point.classList.contains("chosen") === on) return;
  point.classList.toggle("chosen", on);
  const id = point.dataset.id;
  if (on) {
    form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "exemplars", value: id }));
    form.closest(".part").dataset.dirty = ""; // a reload would forget it
  } else {
    for (const item of chosenIn(form)) if (item.type === "hidden" && item.value === id) item.remove();
  }
}
let drawn = null; // the outline that is being drawn
let moved = false;
document.addEventListener("pointerdown", (event) => {
  const map = event.target.closest?.("svg.map");
  if (!map || event.button || !event.isPrimary || !document.getElementById("act-exemplars")) return;
  drawn = { map, pointer: event.pointerId, x: event.clientX, y: event.clientY, outline: null };
});
const inMap = (map, x, y) => new DOMPoint(x, y).matrixTransform(map.getScreenCTM().inverse());
document.addEventListener("pointermove", (event) => {
  if (event.pointerId !== drawn?.pointer) return;
  if (!drawn.outline && Math.hypot(event.clientX - drawn.x, event.clientY - drawn.y) < 5) return;
  if (!drawn.outline) {
    drawn.outline = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
    drawn.outline.setAttribute("class", "lasso");
    const start = inMap(drawn.map, drawn.x, drawn.y);
    drawn.outline.setAttribute("points", `${start.x},${start.y}`);
    drawn.map.append(drawn.outline);
  }
  const at = inMap(drawn.map, event.clientX, event.clientY);
  drawn.outline.setAttribute("points", `${drawn.outline.getAttribute("points")} ${at.x},${at.y}`);
});
function endDrawing(event) {
  if (event.pointerId !== drawn?.pointer) return;
  const { map, outline } = drawn;
  drawn = null;
  moved = Boolean(outline);
  if (outline) {
    const inside = (point) => {
      const { left, right, top, bottom } = point.getBoundingClientRect();
      return outline.isPointInFill(inMap(map, (left + right) / 2, (top + bottom) / 2));
    };
    // All are looked at before any is changed: after each change the browser would lay out the page anew.
    const around = event.type === "pointercancel" ? [] : [...map.querySelectorAll("a")].filter(inside);
    outline.remove();
    for (const point of around) pick(point, true);
    count();
  }
  release(partOf(map));
}
for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, endDrawing);
document.addEventListener("dragstart", (event) => { if (event.target.closest?.("svg.map")) event.preventDefault(); });
document.addEventListener("click", (event) => { // the drawing may end on a point
  if (moved && event.target.closest?.("svg.map")) { event.preventDefault(); event.stopPropagation(); }
  moved = false;
}, true);
document.addEventListener("keydown", (event) => {
  const point = event.key === " " && event.target.closest?.("svg.map a");
  if (!point) return;
  event.preventDefault();
  pick(point, !point.classList.contains("chosen"));
  count();
});
document.addEventListener("change", count);
document.addEventListener("htmx:afterSettle", count);
document.addEventListener("htmx:afterRequest", ({ detail }) => { // what was done is not chosen any more
  if (!detail.successful || !["act-exemplars", "act-similar"].includes(detail.elt.id)) return;
  for (const item of chosenIn(detail.elt)) item.type === "hidden" ? item.remove() : (item.checked = false);
  for (const point of document.querySelectorAll("svg.map a.chosen")) point.classList.remove("chosen");
  count();
});
count();

// -- keep the user's input: reload a part with the parameters of its last request, and not while it is in use

const partOf = (item) => item?.closest?.(".part");
const typing = (item) => item.matches("input:not([type=checkbox]), select, textarea") && !item.closest("[data-sent]");
function busy(part) {
  return (
    "dirty" in part.dataset ||
    (drawn && part.contains(drawn.map)) ||
    (part.contains(document.activeElement) && typing(document.activeElement)) ||
    [...part.querySelectorAll("video:not([data-clip])")].some((video) => !video.paused && !video.ended)
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
    delete event.target.form?.dataset.sent;
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
    for (const name of ["fresh", "again"]) last.searchParams.delete(name); // apply once
    target.dataset.last = last.pathname + last.search;
  }
  if (!elt.matches("form")) return;
  elt.dataset.sent = ""; // with the Enter key: nobody is typing in its field any more
  for (const part of [partOf(elt), target, ...elt.querySelectorAll(".part")]) {
    if (!part?.matches(".part")) continue;
    delete part.dataset.dirty;
    release(part);
  }
});

// Keep open details and the focus when a part is reloaded.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (postponed(event)) {
    event.detail.shouldSwap = false;
    return;
  }
  if (event.detail.target.id === "part-notices") {
    if (event.detail.serverResponse === said) { // screen readers would read it again
      event.detail.shouldSwap = false;
      show(event.detail.target);
    }
    said = event.detail.serverResponse;
  }
  // The user requested other contents, which discards the part's input.
  if (event.detail.shouldSwap && event.detail.target.matches(".part")) delete event.detail.target.dataset.dirty;
  const key = (item, number) => item.id || number;
  const open = new Set([...event.detail.target.querySelectorAll("details")].map((item, number) => item.open && key(item, number)));
  const held = document.activeElement?.id;
  if (event.detail.target.contains(document.activeElement) || [...open].some((item) => item !== false))
    event.detail.target.addEventListener("htmx:afterSwap", () => {
      event.detail.target.querySelectorAll("details").forEach((item, number) => { item.open = open.has(key(item, number)); });
      if (held) (document.getElementById(held) ?? event.detail.target.closest("[tabindex]"))?.focus({ preventScroll: true });
    }, { once: true });
});

// Show local times.
function local(root) {
  for (const item of root.querySelectorAll?.("time[datetime]") ?? [])
    item.textContent = new Date(item.dateTime).toLocaleString(document.documentElement.lang, { dateStyle: "short", timeStyle: "short" });
}
document.addEventListener("htmx:afterSwap", (event) => local(event.detail.target));
local(document);

// -- cameras: one picture after the other, of those in sight; few at once, as other requests need connections, too

const awaited = new WeakSet(), loading = new Set();
function nextPicture(image, after) {
  if (awaited.has(image)) return;
  awaited.add(image);
  setTimeout(() => {
    awaited.delete(image);
    if (!image.isConnected) return;
    for (const other of loading) if (!other.isConnected) loading.delete(other);
    const { top, bottom } = image.getBoundingClientRect();
    if (document.hidden || bottom < 0 || top > innerHeight) return nextPicture(image, 1000);
    if (loading.size >= 4) return nextPicture(image, 100);
    loading.add(image);
    image.loading = "eager"; // one that is loaded lazily is blank meanwhile
    image.src = `${image.src.split("?")[0]}?number=${Date.now() % 1e9}`;
  }, after);
}
for (const [event, pause] of [["load", 50], ["error", 2000]])
  document.addEventListener(event, ({ target }) => {
    if (!target.matches?.("img[data-picture]")) return;
    loading.delete(target);
    nextPicture(target, pause);
  }, true);
for (const image of document.querySelectorAll("img[data-picture]")) if (image.complete) nextPicture(image, 50);
