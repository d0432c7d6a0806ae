"""All that knows Label Studio: label config, timeline, regions, API client and media."""
