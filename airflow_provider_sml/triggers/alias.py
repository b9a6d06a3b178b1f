"""An alias that moves, as an event of an asset: DAGs are scheduled on "champion of flights changed".

``alias_asset`` gives the asset; a watcher of Airflow's asks the registry again and again, and a webhook of MLflow's
(``ui.webhooks``) tells of a move at once. One move gives one event, whichever of the two sees it first, also when both
see it in the same moment: the watcher notes what it is about to tell, and a webhook leaves that to it. What was told
last is kept with the asset, so that a move while no triggerer runs is told afterwards. It is kept some seconds after
the event, because Airflow writes an event down after its trigger has gone on: a triggerer that ends in those seconds
tells the move again, with the same ``move``, rather than never. All that is kept since Airflow 3.3; before it a
triggerer that starts takes what it finds as told, and a webhook in the moment of a look gives a second event.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from airflow.sdk import Asset, AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_provider_sml.hooks import checks
from airflow_provider_sml.hooks.places import is_location

#: Id of the connection to MLflow that is meant when none is named; as in ``hooks.mlflow``.
MLFLOW = "mlflow"
#: Keys of the version that was told last, and of the one that a watcher is about to tell, in Airflow's store of what is
#: known of an asset.
TOLD, TELLING = "sml_told_version", "sml_telling_version"
#: What stands for the latter while a watcher notes what it has told; no version is called so.
NOTING = "noting"
#: Seconds until an event is taken as written down; Airflow's triggerer does it about every second.
SETTLED = 5.0


def alias_asset(name: str, alias: str = "champion", mlflow: str = MLFLOW, poll_interval: float | None = 60.0) -> Asset:
    """The asset that has an event whenever an alias of a registered model points to another version.

    The event's ``extra`` names the version: in ``extra["payload"]`` when the watcher saw the move, in ``extra`` itself
    when a webhook told it; ``moved_to`` reads both.

    :param name: registered model.
    :param alias: the alias.
    :param mlflow: address or folder of MLflow, or the id of its connection; webhooks need the id.
    :param poll_interval: seconds between looks; None when only webhooks are to tell.
    """
    title, uri = asset_key(name, alias, mlflow)
    if poll_interval is None:
        return Asset(name=title, uri=uri)
    trigger = AliasTrigger(name=name, alias=alias, mlflow=mlflow, poll_interval=poll_interval)
    return Asset(name=title, uri=uri, watchers=[AssetWatcher(name=title, trigger=trigger)])


def asset_key(name: str, alias: str, mlflow: str = MLFLOW) -> tuple[str, str]:
    """Name and URI of such an asset.

    :param name: registered model.
    :param alias: the alias.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    """
    place = hashlib.sha256(mlflow.encode()).hexdigest()[:12] if is_location(mlflow) else mlflow
    where = "" if mlflow == MLFLOW else f" in {place}"
    uri = f"x-sml://{quote(place, safe='')}/{quote(name, safe='')}/aliases/{quote(alias, safe='')}"
    return f"{alias} of {name}{where}", uri


def moved_to(event: Any) -> dict[str, Any]:
    """What an event of such an asset says: ``name``, ``alias``, ``version``, ``model_id``, ``run_id``, ``registry``,
    and ``move``: an id that is the same in events of the same move; empty where the history does not tell of it.

    :param event: one of ``context["triggering_asset_events"]``.
    """
    extra = dict(event.extra or {})
    return dict(extra["payload"]) if extra.get("from_trigger") else extra


class AliasTrigger(BaseEventTrigger):
    """Looks where an alias of a registered model points, without end, and gives an event each time it has moved.

    What cannot be looked at (a server that is down, a connection that is missing) is logged and looked at again. The
    version that the first look ever finds is no move. An alias that moves there and back between two looks has not
    moved.

    :param name: registered model.
    :param alias: the alias.
    :param mlflow: address or folder of MLflow, or the id of its connection.
    :param poll_interval: seconds between looks.
    """

    def __init__(self, name: str, alias: str = "champion", mlflow: str = MLFLOW, poll_interval: float = 60.0) -> None:
        super().__init__()
        self.name = name
        self.alias = alias
        self.mlflow = mlflow
        self.poll_interval = poll_interval
        self._before: str | None = None  # what was told last when a version was claimed

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Path and arguments, to make the trigger again in a triggerer."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {"name": self.name, "alias": self.alias, "mlflow": self.mlflow, "poll_interval": self.poll_interval},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look in a thread, so that a slow server does not block other triggers."""
        told: str | None = None
        noted = True
        while True:
            try:
                if told is not None and not noted:
                    told, noted = await self._note(told), True
                found = await asyncio.to_thread(checks.pointed, self.name, self.alias, "", "", self.mlflow)
                version = str(found.facts.get("version", ""))
                if told is None:
                    told = await self._kept(TOLD)
                if told is None:  # the first look ever
                    told, noted = version, False
                elif version and version != told:
                    if await self._claim(version):
                        move = await asyncio.to_thread(checks.move, self.name, self.alias, version, self.mlflow)
                        moved = found.facts | {"alias": self.alias, "before": told, "move": move}
                        told, noted = version, False
                        yield TriggerEvent(moved)
                        await asyncio.sleep(min(SETTLED, self.poll_interval))
                    else:
                        told, noted = version, False
                if told is not None and not noted:
                    told, noted = await self._note(told), True
            except Exception as error:
                self.log.warning("%s of %s could not be looked at: %s", self.alias, self.name, error)
            await asyncio.sleep(self.poll_interval)

    async def _claim(self, version: str) -> bool:
        """Note that a version is about to be told; false when a webhook has told it. A webhook that is telling makes
        the note wait."""
        await self._keep(TELLING, version)
        self._before = await self._kept(TOLD)
        return self._before != version

    async def _note(self, version: str) -> str:
        """Note that a version was told, unless a webhook has told another one meanwhile; gives what was told last. A
        webhook that is telling makes it wait, and leaves to the watcher what it hears of while this is noted."""
        if getattr(self, "asset_state_store", None) is None:
            return version
        await self._keep(TELLING, NOTING)
        last = await self._kept(TOLD)
        if last is None or last == self._before:
            await self._keep(TOLD, version)
            last = version
        await self._keep(TELLING, "")
        return last

    async def _kept(self, key: str) -> str | None:
        """What is kept with the asset; None when nothing is, or nothing can be."""
        store = getattr(self, "asset_state_store", None)
        value = await store.aget(key) if store is not None else None
        return None if value is None else str(value)

    async def _keep(self, key: str, value: str) -> None:
        store = getattr(self, "asset_state_store", None)
        if store is not None:
            await store.aset(key, value)
