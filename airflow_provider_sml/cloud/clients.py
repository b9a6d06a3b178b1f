"""How an adapter gets the client of its service, in whatever process it is made again.

An adapter holds plain JSON, and this layer knows nothing of connections. So it names a function of a layer above by its
path, as it is itself named for a trigger, and what to call it with: the id of a connection, never a secret.
"""

from __future__ import annotations

import importlib
from typing import Any

from airflow_provider_sml.errors import ConfigurationError


def open_client(function: str, *arguments: Any) -> Any:
    """Call the function of a path.

    :param function: such as ``airflow_provider_sml.hooks.warehouse.bigquery_client``.
    :param arguments: what it is called with.
    """
    module, _, name = function.rpartition(".")
    # A trigger's arguments come out of the database: they may not name just any function.
    ours = module.startswith(f"{__name__.partition('.')[0]}.hooks.")
    found = getattr(importlib.import_module(module), name, None) if ours else None
    if not callable(found):
        raise ConfigurationError(
            "an adapter cannot open its client", expected="a function of airflow_provider_sml.hooks", found=function
        )
    return found(*arguments)
