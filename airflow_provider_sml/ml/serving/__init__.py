"""Serving of a model bundle: the scoring server, its prediction log, and the local endpoint that rolls versions out.

``requests`` checks what comes in, ``server`` answers over HTTP in the forms of SageMaker and Vertex AI, ``process`` is
the server as a process, ``local`` starts and replaces such processes, ``parity`` compares scores over HTTP.
"""
