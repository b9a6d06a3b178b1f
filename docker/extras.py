"""Prints the requirements of extras from setup.cfg, without Airflow: what an image that trains and scores installs.

python docker/extras.py dask xgboost serving amazon:s3fs

``EXTRA:NAME`` takes that one requirement of an extra.
"""

import configparser
import re
import sys
from pathlib import Path

NAME = "airflow-provider-sml"
#: Of the core, what the engine itself imports.
CORE = ("psutil", "pydantic", "PyYAML")
#: It starts a worker for each GPU of one machine, and would take Dask back from the version that the tasks have.
LEFT_OUT = "dask-cuda"


def requirements(extras: list[str], path: Path) -> list[str]:
    """The lines of some extras and what they refer to, each once.

    :param extras: names of extras, or of one requirement of an extra (``amazon:s3fs``). ``xgboost-gpu`` stands in for
        ``xgboost`` wherever another extra names that.
    :param path: of setup.cfg.
    """
    config = configparser.ConfigParser()
    config.read(path)
    known = config["options.extras_require"]
    lines = [line for line in config["options"]["install_requires"].split("\n") if line.startswith(CORE)]
    wanted, done = list(extras), set()
    while wanted:
        extra, _, only = wanted.pop(0).partition(":")
        extra = "xgboost-gpu" if extra == "xgboost" and "xgboost-gpu" in extras else extra
        if extra in done and not only:
            continue
        if extra not in known:
            raise SystemExit(f"There is no extra {extra}; there are: {', '.join(known)}")
        if only:
            found = re.search(rf"^{re.escape(only)}\b.*$", known[extra], re.MULTILINE)
            if found is None:
                raise SystemExit(f"The extra {extra} has no requirement {only}")
            lines.append(found[0].partition(" #")[0].strip())
            continue
        done.add(extra)
        for line in filter(None, (line.partition(" #")[0].strip() for line in known[extra].split("\n"))):
            own = re.fullmatch(re.escape(NAME) + r"\[(.*)\]", line)
            if own:
                wanted += [name.strip() for name in own[1].split(",")]
            elif not line.startswith(("#", LEFT_OUT)):
                lines.append(line)
    return list(dict.fromkeys(lines))


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    found = next(path for path in (here / "setup.cfg", here.parent / "setup.cfg") if path.is_file())
    print("\n".join(requirements(sys.argv[1:], found)))
