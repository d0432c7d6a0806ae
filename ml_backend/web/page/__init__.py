"""The control room's page for browsers: server-rendered, kept live by events, usable without scripts."""
