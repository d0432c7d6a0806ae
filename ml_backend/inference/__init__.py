"""From a video to its tracks and Label Studio regions: the pipeline, frame sampling, chunks of long videos."""
