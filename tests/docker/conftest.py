"""Images that are built once for the whole run, where SML_BUILD_IMAGES asks for it."""

import os
import shutil
import tempfile

import pytest

from tests.docker.images import PATH, PROGRAMS, Images


@pytest.fixture(scope="session")
def images():
    """A store of images; SML_BUILD_IMAGES names the folder of one that stays, or is 1 for one that goes again."""
    asked = os.environ.get("SML_BUILD_IMAGES")
    if not asked:
        pytest.skip("it takes minutes: SML_BUILD_IMAGES=1 asks for it")
    for program in PROGRAMS:
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not installed: apt-get install {' '.join(PROGRAMS)}")
    stays = asked.startswith("/")
    found = Images(asked if stays else tempfile.mkdtemp(prefix="sml-"))
    yield found
    if not stays:
        shutil.rmtree(found.work, ignore_errors=True)


@pytest.fixture(scope="session")
def scoring(images):
    """The name of docker/scoring.Dockerfile's image."""
    return images.build("localhost/sml-scoring:latest", "docker/scoring.Dockerfile", images.debian())


@pytest.fixture(scope="session")
def airflow(images):
    """The name of docker/Dockerfile's image, on what stands in for apache/airflow."""
    base = images.build("localhost/airflow:test", "tests/docker/airflow.Dockerfile", images.debian())
    return images.build("localhost/sml-airflow:latest", "docker/Dockerfile", base, IMAGE_DIGEST="commit:abc")
