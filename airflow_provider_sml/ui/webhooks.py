"""The receiver of MLflow's webhooks: an alias that moved becomes an event of its asset at once.

It lies outside Airflow's log-in, because MLflow has none there; what lets a request in is its signature, by a secret
that only the connection to MLflow holds (``webhook_secret``). A request is only a hint: the registry itself is asked
where the alias points, and nothing is told twice. So a request that is sent again, by MLflow or by somebody who has
recorded it, changes nothing, and after five minutes it is refused.

Signed as MLflow 3 does (``mlflow/webhooks/delivery.py``): ``X-MLflow-Signature: v1,`` and the base64 of
HMAC-SHA256(secret, "<X-MLflow-Delivery-Id>.<X-MLflow-Timestamp>.<body>").
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from airflow.utils.session import create_session
from fastapi import FastAPI, HTTPException, Request  # noqa: TID253 - only the API server imports this module
from fastapi.concurrency import run_in_threadpool  # noqa: TID253
from fastapi.responses import JSONResponse  # noqa: TID253

from airflow_provider_sml.errors import ConfigurationError
from airflow_provider_sml.hooks import checks
from airflow_provider_sml.hooks.mlflow import MlflowHook
from airflow_provider_sml.hooks.places import find_connection
from airflow_provider_sml.triggers.alias import MLFLOW, NOTING, TELLING, TOLD, asset_key

#: Largest body that is read, in bytes; MLflow's have a few hundred.
LARGEST = 64 * 1024
#: Seconds that a request may be old, or the other clock ahead.
OLDEST = 300
#: Where a connection keeps the secret.
SECRET = "webhook_secret"

log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()


def signature(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """What MLflow signs a delivery with.

    :param secret: of the webhook.
    :param delivery: its id.
    :param timestamp: seconds since 1970, as text.
    :param body: as it was sent.
    """
    signed = hmac.new(secret.encode(), f"{delivery}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()


def is_genuine(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Whether a request was signed with the secret, and lately.

    :param secret: of the webhook; nothing is genuine when it is empty.
    :param headers: of the request, whatever their case.
    :param body: of the request.
    :param now: seconds since 1970.
    """
    given = {key.lower(): value for key, value in headers.items()}
    delivery, timestamp = given.get("x-mlflow-delivery-id", ""), given.get("x-mlflow-timestamp", "")
    expected = signature(secret, delivery, timestamp, body).encode()
    same = hmac.compare_digest(expected, given.get("x-mlflow-signature", "").encode())
    lately = timestamp.isascii() and timestamp.isdigit() and abs(now - int(timestamp)) <= OLDEST
    return bool(secret and delivery and same and lately)


def moved_alias(body: bytes) -> tuple[str, str] | None:
    """Model and alias that a delivery tells of; None when it tells of something else.

    :param body: of the request.
    :raises ValueError: when it is no delivery.
    """
    told = json.loads(body)
    if not isinstance(told, dict) or not isinstance(told.get("data"), dict):
        raise ValueError("no delivery of MLflow's")
    if (told.get("entity"), told.get("action")) != ("model_version_alias", "created"):
        return None
    return str(told["data"]["name"]), str(told["data"]["alias"])


def tell(conn_id: str, name: str, alias: str, delivery: str) -> str:
    """Add the event of an alias that moved, unless it was told before; gives what was done, in words.

    :param conn_id: of the connection to MLflow.
    :param name: registered model.
    :param alias: the alias.
    :param delivery: id of the delivery, for the event's ``extra``.
    """
    from airflow.assets.manager import asset_manager
    from airflow.models.asset import AssetModel
    from sqlalchemy import select

    title, uri = asset_key(name, alias, conn_id)
    with create_session() as session:  # most models have no DAG that waits for them; then MLflow is not asked
        if session.scalar(select(AssetModel.id).where(AssetModel.name == title, AssetModel.uri == uri)) is None:
            return "no DAG waits for this alias"
    found = MlflowHook(conn_id).get_conn().version(name, alias=alias)
    if found is None:
        return "the alias is gone"
    move = checks.move(name, alias, found.version, conn_id)
    with _one_at_a_time, create_session() as session:
        # The row is locked until the event is written, so that of several API servers one tells it. New rows may still
        # refer to it, such as those of a watcher's notes.
        wanted = select(AssetModel).where(AssetModel.name == title, AssetModel.uri == uri)
        asset = session.scalar(wanted.with_for_update(of=AssetModel, key_share=True))
        if asset is None:
            return "no DAG waits for this alias"
        telling = _hold_watcher(session, asset.id)
        if _told(session, asset.id) == found.version:
            return "it was told before"
        if telling in (found.version, NOTING):
            return "the watcher tells it"
        extra = found.to_xcom() | {"alias": alias, "move": move, "delivery": delivery}
        asset_manager.register_asset_change(asset=asset, extra=extra, session=session)
        _remember(session, asset.id, found.version)
    log.info("%s of %s is version %s now; told by the webhook %s", alias, name, found.version, delivery)
    return "told"


def _hold_watcher(session: Any, asset_id: int) -> str:
    """Keep watchers from noting what they are about to tell until the session ends; gives what one has noted."""
    try:
        from airflow.models.asset_state_store import AssetStateStoreModel
    except ImportError:  # Airflow before 3.3
        return ""
    row = session.get(AssetStateStoreModel, (asset_id, TELLING), with_for_update=True)
    if row is None:
        row = AssetStateStoreModel(asset_id=asset_id, key=TELLING, value=json.dumps(""), last_updated_by_kind="api")
        session.add(row)
    else:
        row.updated_at = datetime.now(UTC)  # SQLite has no locks but those of a write
    session.flush()
    session.refresh(row)  # a watcher may have noted something between the first look and SQLite's lock
    return str(json.loads(row.value))


def _told(session: Any, asset_id: int) -> str | None:
    """The version that was told last, by whichever way; None when none ever was."""
    from airflow.models.asset import AssetEvent
    from sqlalchemy import select

    try:
        from airflow.models.asset_state_store import AssetStateStoreModel
    except ImportError:  # Airflow before 3.3
        pass
    else:
        kept = session.get(AssetStateStoreModel, (asset_id, TOLD))
        if kept is not None:
            return str(json.loads(kept.value))
    newest = select(AssetEvent.extra).where(AssetEvent.asset_id == asset_id).order_by(AssetEvent.id.desc()).limit(1)
    extra = session.scalar(newest) or {}
    version = (extra.get("payload") or {}).get("version") if extra.get("from_trigger") else extra.get("version")
    return str(version) if version else None


def _remember(session: Any, asset_id: int, version: str) -> None:
    """So that the watcher does not tell it again."""
    try:
        from airflow.models.asset_state_store import AssetStateStoreModel
    except ImportError:  # Airflow before 3.3
        return
    session.merge(
        AssetStateStoreModel(asset_id=asset_id, key=TOLD, value=json.dumps(version), last_updated_by_kind="api")
    )


def _secret(conn_id: str) -> str:
    """The secret of a connection; empty when there is none, so that nobody learns which connections exist."""
    try:
        connection = find_connection(conn_id, MLFLOW)
    except ConfigurationError:
        return ""
    if connection is None or connection.conn_type != MlflowHook.conn_type:
        return ""
    return str(connection.extra_dejson.get(SECRET) or "")


async def receive(request: Request, conn_id: str = MLFLOW) -> JSONResponse:
    """Take a delivery.

    :param request: of MLflow.
    :param conn_id: of the connection to it.
    :raises HTTPException: 401 when it is not genuine, 413 when it is too large, 400 when it is no delivery, 503 when
        the registry cannot be asked, so that MLflow sends it again.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            raise HTTPException(413)
    secret = await run_in_threadpool(_secret, conn_id)
    if not is_genuine(secret, request.headers, bytes(body), time.time()):
        raise HTTPException(401)
    try:
        moved = moved_alias(bytes(body))
    except (ValueError, KeyError) as error:
        raise HTTPException(400) from error
    if moved is None:
        return JSONResponse({"done": "nothing: it tells of no alias that was set"})
    try:
        done = await run_in_threadpool(tell, conn_id, *moved, request.headers.get("x-mlflow-delivery-id", ""))
    except ConfigurationError as error:  # such as a version that was not registered by this provider
        log.warning("A webhook of MLflow's was of no use: %s", error)
        done = "nothing: see the API server's log"
    except Exception as error:
        log.exception("A webhook of MLflow's could not be told")
        raise HTTPException(503) from error
    return JSONResponse({"done": done})


def create_receiver() -> FastAPI:
    """The application, to be mounted by Airflow beside the pages."""
    app = FastAPI(title="SML webhooks", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/mlflow", receive, methods=["POST"], response_model=None)
    app.add_api_route("/mlflow/{conn_id}", receive, methods=["POST"], response_model=None)
    return app
