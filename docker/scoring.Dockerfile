# Training and scoring without Airflow: one image for the scoring server, for Dask schedulers and workers, and as the
# custom container of SageMaker and Vertex AI, for training jobs and for endpoints.
#
#   docker build -f docker/scoring.Dockerfile -t sml-scoring .
#   docker build -f docker/scoring.Dockerfile -t sml-scoring-gpu --build-arg XGBOOST=xgboost-gpu .
#
#   docker run -v BUNDLE:/opt/ml/model:ro -p 127.0.0.1:8080:8080 sml-scoring serve
#   docker run --entrypoint dask sml-scoring worker tcp://SCHEDULER:8786 --nworkers 1
#
# A training job (SageMaker starts the container with the word train, Vertex AI with what the operator says) reads its
# sample from S3 or Cloud Storage by the role or account that it runs as. SageMaker's folder /opt/ml may belong to root:
# --build-arg RUN_AS=0 builds an image for training jobs that runs as root.
#
# The server reads the bundle from /opt/ml/model (SageMaker's place; SM_MODEL_DIR names another) and listens on 8080, or
# where SAGEMAKER_BIND_TO_PORT or AIP_HTTP_PORT says. XGBoost's GPU build needs the host's driver and nothing else.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

ARG XGBOOST=xgboost
ENV PATH=/opt/sml/bin:${PATH} \
    DO_NOT_TRACK=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    PYTHONUNBUFFERED=1 \
    SML_SERVE_HOST=0.0.0.0

WORKDIR /opt/build
COPY constraints.txt setup.cfg docker/extras.py ./
RUN python3 -m venv /opt/sml \
    && python extras.py lake dask "${XGBOOST}" sklearn:skops onnx:onnxruntime serving amazon:s3fs google:gcsfs > requirements.txt \
    && python -m pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY airflow_provider_sml airflow_provider_sml
RUN python -m pip install --no-cache-dir --no-deps . \
    && rm -rf build \
    && python -m compileall -q -j 0 /opt/sml/lib

# What names this image in what it makes, such as the commit; see docker/Dockerfile. CuPy ends where it cannot write, and
# the user has no home.
ARG IMAGE_DIGEST=
ARG RUN_AS=10001
RUN useradd --uid 10001 --gid 0 --home-dir /opt/sml --shell /usr/sbin/nologin sml
ENV SML_IMAGE_DIGEST=${IMAGE_DIGEST} \
    CUPY_CACHE_DIR=/tmp/cupy
USER ${RUN_AS}
WORKDIR /opt/sml
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + (os.environ.get('AIP_HTTP_PORT') or os.environ.get('SAGEMAKER_BIND_TO_PORT') or '8080') + '/ping', timeout=2)"]
ENTRYPOINT ["python", "-m", "airflow_provider_sml.ml.serving"]
CMD ["serve"]
