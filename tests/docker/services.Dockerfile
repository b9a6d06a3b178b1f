# Stand in for the images of docker/compose.yaml that are not ours: Debian's PostgreSQL and Prometheus, and the S3
# server that `make servers` builds, started the way those images start them.
ARG BASE
FROM ${BASE} AS postgres
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/* \
    && mkdir /var/lib/postgresql/data \
    && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/ \
    && printf '%s\n' '#!/bin/bash' 'set -euo pipefail' \
         'as() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }' \
         'if [ ! -s "${PGDATA}/PG_VERSION" ]; then' \
         '  chown postgres "${PGDATA}"; chmod 700 "${PGDATA}"' \
         '  as initdb --username="${POSTGRES_USER}" --auth-local=trust' \
         '  echo "host all all all scram-sha-256" >> "${PGDATA}/pg_hba.conf"' \
         '  as pg_ctl --wait start -o "-c listen_addresses="' \
         '  ask() { as psql --username="${POSTGRES_USER}" --set=ON_ERROR_STOP=1 "$@"; }' \
         '  ask --dbname=postgres --command="CREATE DATABASE ${POSTGRES_DB}"' \
         '  echo "ALTER USER ${POSTGRES_USER} PASSWORD '"'"'${POSTGRES_PASSWORD}'"'"'" | ask --dbname=postgres' \
         '  for file in /docker-entrypoint-initdb.d/*.sql; do ask --dbname="${POSTGRES_DB}" < "${file}"; done' \
         '  as pg_ctl --wait stop' \
         'fi' 'as() { exec setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }' 'as "$@"' > /entrypoint \
    && chmod 755 /entrypoint
ENV PGDATA=/var/lib/postgresql/data
ENTRYPOINT ["/entrypoint"]
CMD ["postgres", "-c", "listen_addresses=*"]

FROM ${BASE} AS prometheus
RUN apt-get update \
    && apt-get install --yes --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner=nobody --group=nogroup /prometheus
USER nobody
WORKDIR /prometheus
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]

FROM ${BASE} AS versitygw
COPY versitygw /usr/local/bin/
ENTRYPOINT ["versitygw"]
