"""Stands in for label-studio-ml 2.x, which is no package of PyPI: the contract between its runner and a model, no more.

Written from the documented behaviour: a model is made anew for every request with ``project_id`` and
``label_config``; ``get`` and ``set`` reach a cache per project; ``setup`` runs in the constructor after a first version
was set; ``/setup`` answers what ``get("model_version")`` holds; ``/predict`` hands ``params`` on as keyword arguments;
``/webhook`` calls ``fit`` for training events.
"""
