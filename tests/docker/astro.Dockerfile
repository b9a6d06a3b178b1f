# Stands in for Astro Runtime: the user astro, /usr/local/airflow, libraries of root's without byte code, and what its
# triggers do before the first line of the root Dockerfile: packages.txt, requirements.txt, then the whole project.
ARG BASE
FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install --yes --no-install-recommends dumb-init \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 50000 --gid 0 --home-dir /usr/local/airflow --create-home astro
ENV AIRFLOW_HOME=/usr/local/airflow \
    AIRFLOW__CORE__LOAD_EXAMPLES=false \
    LANG=C.UTF-8 \
    PATH=/usr/local/python/bin:${PATH}
WORKDIR /usr/local/airflow
COPY constraints.txt /tmp/constraints.txt
RUN python3 -m venv /usr/local/python \
    && python -m pip install --no-cache-dir --no-compile 'uv>=0.5' \
    && SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt uv pip install --no-cache --constraint /tmp/constraints.txt --python /usr/local/python apache-airflow
USER astro
ENTRYPOINT ["/usr/bin/dumb-init", "--"]
CMD ["airflow", "version"]

ONBUILD COPY packages.txt .
ONBUILD USER root
ONBUILD RUN apt-get update && xargs --arg-file packages.txt apt-get install --yes --no-install-recommends \
    && rm -rf /var/lib/apt/lists/*
ONBUILD COPY requirements.txt .
ONBUILD RUN SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt uv pip install --no-cache --python /usr/local/python --requirement requirements.txt
ONBUILD USER astro
ONBUILD COPY --chown=astro:0 . .
