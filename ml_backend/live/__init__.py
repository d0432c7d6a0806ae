"""Label cameras while they run: the newest frame, its tracks with labels, and a page to watch."""
