"""What every room uses: settings, errors, array types, boxes and keyframes, files, subprocesses, model cache."""
