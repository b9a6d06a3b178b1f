# Stands in for apache/airflow: the user, the places, the environment and the way of starting that docker/Dockerfile and
# docker/compose.yaml find there. Airflow is in a virtual environment in the user's home, without byte code.
ARG BASE
FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl dumb-init \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 50000 --gid 0 --create-home airflow \
    && mkdir -p /opt/airflow/dags /opt/airflow/logs /root/bin \
    && chown -R airflow:0 /opt/airflow /home/airflow \
    && chmod -R g=u /opt/airflow /home/airflow /etc/passwd \
    && printf '%s\n' '#!/bin/bash' '[ "$(id -u)" != 0 ] || { echo "Please use the user airflow to run pip"; exit 1; }' \
         'exec /home/airflow/.local/bin/pip "$@"' > /root/bin/pip \
    && printf '%s\n' '#!/bin/bash' 'set -euo pipefail' 'umask 0002' \
         'for try in $(seq 20); do airflow db check && break; [ "${try}" -lt 20 ] || exit 1; sleep 3; done' \
         'case "${1:-}" in bash | python) exec "$@" ;; airflow) shift ;; esac' 'exec airflow "$@"' > /entrypoint \
    && chmod 755 /root/bin/pip /entrypoint
ENV AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__LOAD_EXAMPLES=false \
    DUMB_INIT_SETSID=1 \
    LANG=C.UTF-8 \
    VIRTUAL_ENV=/home/airflow/.local \
    PATH=/root/bin:/home/airflow/.local/bin:${PATH}
WORKDIR /opt/airflow
USER 50000
COPY constraints.txt /home/airflow/constraints.txt
RUN python3 -m venv /home/airflow/.local \
    && python -m pip install --no-cache-dir --no-compile --constraint /home/airflow/constraints.txt \
         apache-airflow asyncpg psycopg2-binary \
    && find /home/airflow -name '*.pyc' -delete
EXPOSE 8080
ENTRYPOINT ["/usr/bin/dumb-init", "--", "/entrypoint"]
CMD []
