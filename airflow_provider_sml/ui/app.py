"""The web application behind the page "Models": what a reader may see, and in which cage a report is shown.

Every route asks for Airflow's log-in and its permission for the website. What is shown of a model depends on its DAGs:
endpoints and aliases need read access to ``NAME_deploy``, the nights to ``NAME_monitor``, versions, data and costs to
``NAME_train``, what waits for approval also to that DAG's questions; without any of them there is no such page, whether
the model exists or not. Broken specs are shown to those who may see import errors.

Reports hold scripts of others, so they get an origin of their own: no cookie, no API, no network. It changes nothing
anywhere, and is imported by the API server alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_view
from airflow.configuration import conf
from fastapi import Depends, FastAPI, HTTPException, Query, Request  # noqa: TID253 - only the API server imports this module
from fastapi.responses import FileResponse, HTMLResponse, Response  # noqa: TID253
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_sml.ui import pages
from airflow_provider_sml.ui.live import look
from airflow_provider_sml.ui.mirror import mirrored
from airflow_provider_sml.ui.parts import Base
from airflow_provider_sml.ui.project import STAGES, Model, Project, dag_id
from airflow_provider_sml.ui.registered import Registered, look_up
from airflow_provider_sml.ui.reports import KINDS, Reports
from airflow_provider_sml.ui.waiting import Question, questions

STATIC = Path(__file__).parent / "static"
STATIC_TYPES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "models.svg": "image/svg+xml",
    "models-dark.svg": "image/svg+xml",
}

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; frame-src 'self'; connect-src 'none'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' blob: data:; worker-src blob:; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; connect-src 'none'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
WORDS = {
    401: "You are not logged in. Log in to Airflow, and open this page again.",
    403: "You may not see this. It needs read access to the DAGs of the model.",
    404: "There is no such page.",
}


class Headers:
    """Gives every answer, an error's too, the headers that it has not got by itself.

    :param app: what answers.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def add(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, add if scope["type"] == "http" else send)


def _base(request: Request) -> Base:
    """The paths of these pages and of Airflow, as the browser sees them."""
    own = str(request.scope.get("root_path", "")).rstrip("/")
    return Base(own, own.rpartition("/")[0])


def _project() -> Project:
    return Project.read(Path(conf.get_mandatory_value("core", "dags_folder")))


def _dag_ids(user: GetUserDep) -> set[str]:
    """The DAGs that the reader may read."""
    return set(get_auth_manager().get_authorized_dag_ids(user=user, method="GET"))


BaseDep = Annotated[Base, Depends(_base)]
ProjectDep = Annotated[Project, Depends(_project)]
DagIdsDep = Annotated[set[str], Depends(_dag_ids)]


def readable(name: str, dag_ids: set[str]) -> set[str]:
    """The stages of a model that one may read."""
    return {stage for stage in STAGES if dag_id(name, stage) in dag_ids}


def _model(name: str, project: ProjectDep, dag_ids: DagIdsDep) -> Model:
    """The model of an address.

    :raises HTTPException: 403 when none of its DAGs may be read, whether there is such a model or not.
    """
    if not readable(name, dag_ids):
        raise HTTPException(403)
    model = next((model for model in project.models if model.name == name), None)
    if model is None:
        raise HTTPException(404, f"There is no usable spec of {name}.")
    return model


ModelDep = Annotated[Model, Depends(_model)]
PartQuery = Annotated[int, Query(ge=1, le=100_000)]


def _reports(model: Model) -> Reports:
    location = model.spec.places.reports
    remote = location.startswith(("s3://", "gs://"))
    return Reports(mirrored(location, model.name) if remote else model.place(location), model.name)


def _may_see_questions(user: GetUserDep, dag: str) -> bool:
    """Whether a reader may see what a DAG asks people; Airflow has a permission of its own for that."""
    entity = getattr(DagAccessEntity, "HITL_DETAIL", None)
    return entity is not None and get_auth_manager().is_authorized_dag(
        method="GET", access_entity=entity, details=DagDetails(id=dag), user=user
    )


def _questions(models: Iterable[tuple[str, set[str]]], user: GetUserDep) -> dict[str, list[Question]]:
    """What waits for a person, by the model's name; models whose questions may not be seen are left out."""
    asked = {dag_id(name, "train"): name for name, stages in models if "train" in stages}
    seen = {dag: name for dag, name in asked.items() if _may_see_questions(user, dag)}
    found: dict[str, list[Question]] = {name: [] for name in seen.values()}
    for question in questions(seen):
        found[seen[question.dag_id]].append(question)
    return found


def _row(model: Model, stages: set[str], waiting: int) -> pages.Row:
    reports = _reports(model)
    nights = reports.nights(1) if "monitor" in stages else []
    gates = reports.gates(1) if "train" in stages else []
    return pages.Row(
        model,
        look(model) if "deploy" in stages else None,
        nights[0] if nights else None,
        gates[0] if gates else None,
        waiting,
    )


def _file(model: ModelDep, kind: str, key: str, dag_ids: DagIdsDep) -> Path:
    """The page of a report.

    :raises HTTPException: when there is none, or its stage's DAG may not be read.
    """
    if kind not in KINDS:
        raise HTTPException(404)
    if KINDS[kind].stage not in readable(model.name, dag_ids):
        raise HTTPException(403)
    path = _reports(model).page(kind, key)
    if path is None:
        raise HTTPException(404, "There is no such report.")
    return path


FileDep = Annotated[Path, Depends(_file)]


def show_list(base: BaseDep, project: ProjectDep, dag_ids: DagIdsDep, user: GetUserDep) -> Response:
    """All models of which one may see something."""
    seen = [(model, stages) for model in project.models if (stages := readable(model.name, dag_ids))]
    asked = _questions([(model.name, stages) for model, stages in seen], user)
    with ThreadPoolExecutor(max_workers=8) as pool:  # an endpoint may take two seconds to say nothing
        rows = list(pool.map(lambda item: _row(item[0], item[1], len(asked.get(item[0].name, ()))), seen))
    errors = get_auth_manager().is_authorized_view(access_view=AccessView.IMPORT_ERRORS, user=user)
    return HTMLResponse(pages.model_list(base, rows, project.broken if errors else []))


def show_model(
    base: BaseDep, model: ModelDep, dag_ids: DagIdsDep, user: GetUserDep, nights: PartQuery = 1,
    versions: PartQuery = 1, moves: PartQuery = 1,
) -> Response:  # fmt: skip
    """One model; ``nights``, ``versions`` and ``moves`` say which part of these lists is shown."""
    stages = readable(model.name, dag_ids)
    seen = pages.Seen(
        stages,
        _reports(model),
        look_up(model) if stages & {"train", "deploy"} else Registered(),
        look(model) if "deploy" in stages else None,
        _questions([(model.name, stages)], user).get(model.name),
        {"nights": nights, "versions": versions, "moves": moves},
    )
    return HTMLResponse(pages.model_page(base, model, seen))


def show_report(base: BaseDep, model: ModelDep, kind: str, key: str, _: FileDep) -> Response:
    """The frame around a report."""
    return HTMLResponse(pages.report_page(base, model.name, kind, key))


def send_report(file: FileDep) -> Response:
    """The report itself, caged."""
    headers = {"Content-Security-Policy": REPORT_POLICY, "Cache-Control": "private, no-cache"}
    return FileResponse(file, media_type="text/html", headers=headers)


def send_static(name: str) -> Response:
    """A file that belongs to the pages."""
    if name not in STATIC_TYPES:
        raise HTTPException(404)
    headers = {"Cache-Control": "private, max-age=3600"}
    return FileResponse(STATIC / name, media_type=STATIC_TYPES[name], headers=headers)


async def show_error(request: Request, error: Exception) -> Response:
    """A page that says what is wrong."""
    status = error.status_code if isinstance(error, StarletteHTTPException) else 500
    detail = getattr(error, "detail", "")
    known = status in WORDS and (status != 404 or detail == "Not Found")
    text = WORDS[status] if known else str(detail)
    return HTMLResponse(pages.error_page(_base(request), status, text), status, headers=getattr(error, "headers", None))


def create_app() -> FastAPI:
    """The application, to be mounted by Airflow."""
    app = FastAPI(
        title="SML models",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(requires_access_view(AccessView.WEBSITE))],
        exception_handlers={StarletteHTTPException: show_error},
    )
    app.add_middleware(Headers)
    routes: dict[str, Callable[..., Response]] = {
        "/": show_list,
        "/models/{name}": show_model,
        "/models/{name}/{kind}/{key}": show_report,
        "/models/{name}/{kind}/{key}/report.html": send_report,
        "/static/{name}": send_static,
    }
    for address, answer in routes.items():
        app.add_api_route(address, answer, methods=["GET"], response_model=None)
    return app
