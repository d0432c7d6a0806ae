"""The runner's routes, as far as a model meets them."""

from __future__ import annotations

from typing import Any

from flask import Flask, jsonify, request

TRAIN_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "START_TRAINING")


def init_app(model_class: Any) -> Flask:
    app = Flask(__name__)

    @app.post("/predict")
    def predict() -> Any:
        data = request.get_json()
        project = str(data.get("project")).split(".", 1)[0]
        params = data.get("params", {})
        context = params.pop("context", {})
        model = model_class(project_id=project, label_config=data.get("label_config"))
        return jsonify({"results": model.predict(data.get("tasks"), context=context, **params) or []})

    @app.post("/setup")
    def setup() -> Any:
        data = request.get_json()
        model = model_class(project_id=data.get("project").split(".", 1)[0], label_config=data.get("schema"))
        if data.get("extra_params"):
            model.set_extra_params(data["extra_params"])
        return jsonify({"model_version": model.get("model_version")})

    @app.post("/webhook")
    def webhook() -> Any:
        data = request.get_json()
        event = data.pop("action")
        if event not in TRAIN_EVENTS:
            return jsonify({"status": "Unknown event"}), 200
        model = model_class(str(data["project"]["id"]), label_config=data["project"]["label_config"])
        return jsonify({"result": model.fit(event, data), "status": "ok"}), 201

    @app.get("/health")
    def health() -> Any:
        return jsonify({"status": "UP", "model_class": model_class.__name__})

    return app
