"""The models of an Airflow project: its spec files, and where their reports and endpoints lie.

The project's root is where ``include/pipelines`` is: beside the DAGs folder, or inside it, as on Cloud Composer. Specs
are read anew for every page, so that the page shows what the files say. It reads no DAG, and knows nothing of projects
that Airflow has as bundles elsewhere (git, S3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airflow_provider_sml.pipelines.loader import load_spec
from airflow_provider_sml.pipelines.spec import PipelineSpec

PIPELINES = Path("include", "pipelines")
STAGES = ("ingest", "train", "deploy", "monitor")


@dataclass(frozen=True)
class Model:
    """A model of the project.

    :param spec: its spec.
    :param file: the spec's file, from the project's root.
    :param root: the project's root.
    """

    spec: PipelineSpec
    file: Path
    root: Path

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    def place(self, value: str) -> Path | None:
        """A folder of the spec; None when it is not on a file system."""
        return None if "://" in value else self.root / value


@dataclass(frozen=True)
class BrokenSpec:
    """A spec file that cannot be used.

    :param file: from the project's root.
    :param error: what is wrong with it, with lines.
    """

    file: Path
    error: str


@dataclass(frozen=True)
class Project:
    """What the spec files of a project say.

    :param models: by name.
    :param broken: the files that cannot be used.
    """

    models: list[Model]
    broken: list[BrokenSpec]

    @classmethod
    def read(cls, dags_folder: Path) -> Project:
        """Read all specs of the project around a DAGs folder; one that is broken hides no other."""
        roots = (dags_folder.parent, dags_folder)
        root = next((root for root in roots if (root / PIPELINES).is_dir()), dags_folder.parent)
        models: dict[str, Model] = {}
        broken: list[BrokenSpec] = []
        for path in _files(root / PIPELINES):
            file = path.relative_to(root)
            try:
                model = Model(load_spec(path), file, root)
                if model.name in models:
                    raise ValueError(f"{file}: the name {model.name} is taken by {models[model.name].file}")
            except Exception as error:  # whatever it is, the reader has to see it beside the models that are sound
                text = str(error).replace(f"{root}/", "") or repr(error)
                broken.append(BrokenSpec(file, text))
            else:
                models[model.name] = model
        return cls([models[name] for name in sorted(models)], broken)


def dag_id(name: str, stage: str) -> str:
    """The DAG of one stage of a model."""
    return f"{name}_{stage}"


def _files(folder: Path) -> Iterator[Path]:
    """The spec files; a profile (``flights.production.yaml`` beside ``flights.yaml``) is none."""
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        base = path.with_name(path.name.split(".")[0] + path.suffix)
        if not path.name.startswith(".") and (base == path or not base.exists()):
            yield path
