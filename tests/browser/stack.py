"""Airflow on a project of its own, as ``scripts/up.py`` starts it on this one; run as a process of its own.

``python tests/browser/stack.py FOLDER`` serves the project in FOLDER to the users of its ``.airflow/passwords.json``:
``admin`` and ``ann`` may do things, ``vera`` may look.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USERS = {"admin": "admin", "ann": "op", "vera": "viewer"}


def main(folder: Path) -> int:
    found = importlib.util.spec_from_file_location("up", ROOT / "scripts" / "up.py")
    up = importlib.util.module_from_spec(found)
    found.loader.exec_module(up)
    up.PROJECT, up.HOME = folder, folder / ".airflow"
    real = up.settings

    def settings(**ports):
        password, env = real(**ports)
        users = ",".join(f"{name}:{role}" for name, role in USERS.items())
        return password, env | {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": users}

    up.settings = settings
    return up.main()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
