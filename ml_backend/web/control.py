"""The control room's API below ``/api``: the table of routes. Handlers ask the services, which do the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Blueprint, Response, jsonify, request

from ml_backend.outputs import NAME
from ml_backend.web import answers, bodies, control_room, downloads, openapi, uploads
from ml_backend.web.protocol import services
from ml_backend.web.routing import Answer, Route, register

if TYPE_CHECKING:
    from ml_backend.services import Services

blueprint = Blueprint("control", __name__, url_prefix="/api", template_folder="templates")

_JOB_ID = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,200}$"}
_REQUESTED = Answer("The job, new or already under way.", answers.JobAnswer)
_FILES = ("video/mp4", "application/zip", "application/json")
_SAME_JOB = "The same request is the same job for as long as that waits or runs."


def _document() -> dict[str, object]:
    found: Services = services()
    settings = found.settings
    return openapi.document(ROUTES, auth=bool(settings.basic_auth_user and settings.basic_auth_pass.get_secret_value()))


def describe() -> Response:
    """This very API."""
    return jsonify(_document())


def docs() -> Response:
    """The same for people."""
    answer = Response(openapi.page(_document()), content_type="text/html; charset=utf-8")
    answer.headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
    return answer


@blueprint.after_request
def harden(response: Response) -> Response:
    """Answers are what they say they are, are for nobody's cache, and are shown in nobody else's page."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("X-Frame-Options", "SAMEORIGIN")
    if request.endpoint and "download" not in request.endpoint:
        response.headers.setdefault("Cache-Control", "no-store")
    return response


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/status",
        control_room.status,
        "Overview",
        "How things are",
        "Models in use, workers, queues, and whether the parts answer. Label Studio is not asked. With a project, its "
        "models. Numbers are at most a second old.",
        {200: Answer("The state.", answers.Status)},
        query=bodies.OfAnyProject,
    ),
    Route(
        "GET",
        "/projects",
        control_room.projects,
        "Overview",
        "Projects",
        "Projects of Label Studio that the configured token may see.",
        {200: Answer("The projects.", answers.ProjectList)},
        errors=(502,),
    ),
    Route(
        "GET",
        "/memory_status",
        control_room.memory_status,
        "Models",
        "Models and memory by worker",
        "As workers told it last, within their lease.",
        {200: Answer("By worker.", answers.Memory)},
    ),
    Route(
        "POST",
        "/optimize_memory",
        control_room.optimize_memory,
        "Models",
        "Unload idle models",
        "Workers do so between two jobs, within their lease. Sent again, it finds nothing left to unload.",
        {202: Answer("They were asked.", answers.Optimizing)},
    ),
    Route(
        "POST",
        "/init_models",
        control_room.init_models,
        "Models",
        "Load a project's models",
        "One worker of the queue `control` takes the job: it loads them, and holds them until memory is needed. Every "
        f"other worker loads them with the first prediction that it makes. {_SAME_JOB}",
        {202: _REQUESTED},
        body=bodies.OfProject,
    ),
    Route(
        "POST",
        "/switch_model",
        control_room.switch_model,
        "Models",
        "Switch a project's mode, its version, or both",
        "Tasks that nobody has annotated are predicted anew in the background. Sent again, it changes nothing.",
        {200: Answer("What is used from now on.", answers.Switched)},
        body=bodies.SwitchModel,
    ),
    Route(
        "POST",
        "/load_custom_model",
        control_room.load_custom_model,
        "Models",
        "Use a trained version",
        "Only versions of the registry: no file can be named. Sent again, it changes nothing.",
        {202: Answer("It is in use; the job loads it.", answers.Loading)},
        body=bodies.LoadCustomModel,
    ),
    Route(
        "POST",
        "/learn_patterns",
        control_room.learn_patterns,
        "Learn",
        "Learn all annotations anew",
        f"What people submit is learned by itself; this reads everything once more. {_SAME_JOB}",
        {202: _REQUESTED},
        body=bodies.OfProject,
    ),
    Route(
        "GET",
        "/get_patterns_info",
        control_room.patterns_info,
        "Learn",
        "What a project has learned",
        "Counts are of this moment. Clusters and thresholds are found out by a job, once for each state.",
        {200: Answer("By label.", answers.Patterns)},
        query=bodies.OfProject,
        starts_job=True,
    ),
    Route(
        "GET",
        "/exemplars",
        control_room.exemplars,
        "Learn",
        "What a label was taught with",
        "Views of annotated objects with their pictures, newest first.",
        {200: Answer("The exemplars.", answers.Exemplars)},
        query=bodies.ShowExemplars,
    ),
    Route(
        "GET",
        "/similar",
        control_room.similar,
        "Learn",
        "Find more like this",
        "Tracks that nobody has annotated and that are most like a label's exemplars. A job looks for them: ask again "
        "when it has ended.",
        {
            200: Answer("What was found for the present state.", answers.SimilarTracks),
            202: Answer("A job looks for them; what was found for an earlier state.", answers.SimilarTracks),
        },
        query=bodies.FindSimilar,
        starts_job=True,
        errors=(422,),
    ),
    Route(
        "POST",
        "/train_custom_model",
        control_room.train,
        "Learn",
        "Retrain a project's detector",
        f"It is used only if it is not worse. {_SAME_JOB} What is asked while it runs makes one more, which finds "
        "nothing new unless something was annotated meanwhile.",
        {202: _REQUESTED},
        body=bodies.Train,
    ),
    Route(
        "GET",
        "/versions",
        control_room.versions,
        "Learn",
        "A project's versions",
        "What was trained, epoch by epoch, how good it is, and what people accepted.",
        {200: Answer("The registry.", answers.Versions)},
        query=bodies.OfProject,
    ),
    Route(
        "POST",
        "/versions/rollback",
        control_room.rollback,
        "Learn",
        "Back to the version before",
        "Names the version that is to be left: sent again, it is refused with 409, since that is no longer in use.",
        {200: Answer("What is used from now on.", answers.Switched)},
        body=bodies.Rollback,
        errors=(409,),
    ),
    Route(
        "POST",
        "/auto_label",
        control_room.auto_label,
        "Auto-label",
        "Request predictions",
        f"Of the tasks that are named, or of all without annotations. Finished ones are not made again. {_SAME_JOB} "
        "It is under way until the last prediction is there.",
        {202: _REQUESTED},
        body=bodies.AutoLabel,
    ),
    Route(
        "POST",
        "/upload_video",
        uploads.upload_video,
        "Label",
        "Upload a video",
        "Streamed to disk up to UPLOAD_MAX_GB; a job makes it playable where it is not, and a task of the project. A "
        f"file that the project has already makes no second task. {_SAME_JOB}",
        {202: _REQUESTED},
        form=uploads.FORM,
    ),
    Route(
        "GET",
        "/stats",
        control_room.statistics,
        "Label",
        "What has been annotated",
        "By label and by person, and what people accepted of each version. A job counts; numbers of the last minute "
        "are not counted anew.",
        {
            200: Answer("The numbers.", answers.Statistics),
            202: Answer("Nothing has been counted yet; a job does it.", answers.Statistics),
        },
        query=bodies.Statistics,
        starts_job=True,
    ),
    Route(
        "POST",
        "/create_annotated_video",
        downloads.create_annotated_video,
        "Review and export",
        "Render a video with boxes",
        f"Annotations or the newest prediction of a task, or what the settings' detector finds now. {_SAME_JOB} "
        "Afterwards it makes another file, since annotations may have changed.",
        {202: _REQUESTED},
        body=bodies.AnnotatedVideo,
    ),
    Route(
        "POST",
        "/create_custom_model_video",
        downloads.create_custom_model_video,
        "Review and export",
        "Render what a trained version finds",
        "The version that is named, or the one in use, in the project's mode. Tracks that it has made of the video are "
        f"used again. {_SAME_JOB}",
        {202: _REQUESTED},
        body=bodies.CustomModelVideo,
    ),
    Route(
        "POST",
        "/export",
        downloads.export,
        "Review and export",
        "Export a project",
        f"Rows of JSON, or a dataset in a zip archive. {_SAME_JOB} Afterwards it makes another file.",
        {202: _REQUESTED},
        body=bodies.Export,
    ),
    Route(
        "GET",
        "/download/<filename>",
        downloads.download,
        "Review and export",
        "Download a file",
        "Only files that were made here, by the name in a job's result. Oldest ones go first when they exceed "
        "OUTPUTS_GB.",
        {
            200: Answer("The file.", media_types=_FILES, schema={}),
            206: Answer("The part that was asked for.", media_types=_FILES, schema={}),
            304: Answer("It is as the headers say that it is known.", media_types=()),
        },
        path_schemas={"filename": {"type": "string", "pattern": f"^{NAME.pattern}$"}},
        errors=(416,),
        parameters=(
            {"name": "Range", "in": "header", "required": False, "schema": {"type": "string"}},
            {"name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"}},
        ),
    ),
    Route(
        "GET",
        "/jobs",
        control_room.jobs,
        "Jobs",
        "Jobs",
        "Running, waiting, failed and lately ended ones.",
        {200: Answer("The jobs.", answers.JobList)},
        query=bodies.ListJobs,
    ),
    Route(
        "GET",
        "/jobs/<job_id>",
        control_room.job,
        "Jobs",
        "A job",
        "State, progress, time left, error and result. Results are kept for a week.",
        {200: Answer("The job.", answers.Job)},
        path_schemas={"job_id": _JOB_ID},
    ),
    Route(
        "DELETE",
        "/jobs/<job_id>",
        control_room.cancel,
        "Jobs",
        "Cancel a job",
        "One that waits is taken back; one that runs stops within seconds, and is `cancelling` until then. Sent again "
        "when it is over, it is refused with 409.",
        {200: Answer("The job.", answers.Job)},
        path_schemas={"job_id": _JOB_ID},
        errors=(409,),
    ),
    Route(
        "GET",
        "/openapi.json",
        describe,
        "This API",
        "This document",
        "OpenAPI 3.1.",
        {200: Answer("The document.", dict)},
    ),
    Route(
        "GET",
        "/docs",
        docs,
        "This API",
        "This document for people",
        "A page without scripts.",
        {200: Answer("The page.", media_types=("text/html",), schema={"type": "string"})},
    ),
)

register(blueprint, ROUTES)
