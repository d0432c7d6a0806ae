# Backend and worker; the command decides which.
FROM python:3.12-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY requirements-image.lock .
# The last step makes the headless OpenCV the one whose files are used: the other needs libGL.
RUN pip install --no-deps --require-hashes -r requirements-image.lock \
    && sed -n '/^opencv-python-headless==/,/[^\\]$/p' requirements-image.lock >headless.lock \
    && pip install --no-deps --require-hashes --force-reinstall -r headless.lock \
    && rm requirements-image.lock headless.lock

FROM python:3.12-slim-bookworm
# PyTorch and OpenCV need it; the slim image lacks it.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes libgomp1 \
    && rm -rf /var/lib/apt/lists/*
# The group is Label Studio's (root), so that uploads on the shared volume can be read.
RUN useradd --uid 10001 --gid 0 --create-home backend \
    && mkdir /data && chown 10001:0 /data && chmod 770 /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DATA_DIR=/data \
    XDG_CACHE_HOME=/data/cache \
    YOLO_AUTOINSTALL=false \
    YOLO_CONFIG_DIR=/data/ultralytics \
    MPLCONFIGDIR=/data/matplotlib \
    HF_HOME=/data/huggingface \
    TORCH_HOME=/data/torch
WORKDIR /app
COPY label_config.xml LICENSE ./
COPY scripts scripts
COPY ml_backend ml_backend
# Nothing is written at run time: without this every start would compile all of it again.
RUN python -m compileall -q ml_backend scripts
USER 10001:0
VOLUME /data
EXPOSE 9090
CMD ["gunicorn", "--config", "python:ml_backend.server.gunicorn_config", "--bind", "0.0.0.0:9090"]
