# The image that `astro dev start` and `astro deploy` build. The runtime installs packages.txt and requirements.txt and
# copies the project by itself; what is left is the package. Every other platform: docker/Dockerfile.
FROM astrocrpublic.azurecr.io/runtime:3.3-1

# Byte code is made here, because the user astro cannot write it, and importing without it costs every task seconds.
USER root
RUN python -m pip install --no-cache-dir --no-deps . \
    && rm -rf build airflow_provider_sml* \
    && python -m compileall -q -j 0 "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# What the lineage of models names this image by; the Deployment's variable SML_IMAGE_DIGEST goes before.
ARG IMAGE_DIGEST=
RUN python -m compileall -q dags include
ENV SML_IMAGE_DIGEST=${IMAGE_DIGEST}
USER astro
