"""The control room: server-rendered pages, kept live by polling, usable without scripts."""
