"use strict";

const STATES = {
  connecting: "Connecting …",
  running: "Running",
  lost: "Lost, trying again",
  ended: "Ended",
};

function text(name, value) {
  if (name.startsWith("latency")) return `${Math.round(value * 1000)} ms`;
  if (name !== "recorded") return String(value);
  return [`${value.videos} videos, ${Math.round(value.seconds)} s`, value.paused_because].filter(Boolean).join(": ");
}

function show(section, camera) {
  const state = section.querySelector(".state");
  state.textContent = [STATES[camera.state], camera.error, camera.note].filter(Boolean).join(": ");
  state.classList.toggle("problem", Boolean(camera.error || camera.note));
  for (const cell of section.querySelectorAll("[data-fact]")) {
    cell.textContent = text(cell.dataset.fact, camera[cell.dataset.fact]);
  }
  const rows = Object.keys(camera.seen).sort().map((label) => {
    const row = document.createElement("tr");
    for (const text of [label || "(no label)", camera.now[label] ?? 0, camera.seen[label]]) {
      row.insertCell().textContent = text;
    }
    return row;
  });
  section.querySelector("tbody").replaceChildren(...rows);
}

async function refresh() {
  const sections = [...document.querySelectorAll("[data-camera]")];
  try {
    const { cameras } = await (await fetch("/status")).json();
    sections.forEach((section, number) => show(section, cameras[number]));
  } catch {
    for (const section of sections) {
      section.querySelector(".state").textContent = "The command has ended. Fix: start it again.";
      section.querySelector(".state").classList.add("problem");
    }
  }
  setTimeout(refresh, 1000);
}

// One request for each picture: a stream for each camera would take all connections that browsers allow.
function watch(image) {
  const address = image.getAttribute("src");
  let number = 0;
  const next = () => { image.src = `${address}?${++number}`; };
  image.onload = () => setTimeout(next, 20);
  image.onerror = () => setTimeout(next, 1000);
  if (image.complete) next();
}

document.querySelectorAll("[data-camera] img").forEach(watch);
refresh();
