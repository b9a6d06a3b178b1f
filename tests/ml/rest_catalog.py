"""A server of Iceberg's REST catalog protocol for tests: the calls that a lake makes, over a catalog in SQLite.

The protocol is https://github.com/apache/iceberg/blob/main/open-api/rest-catalog-open-api.yaml; requests and answers
are pyiceberg's own models.
"""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from pyiceberg.catalog.rest import CreateTableRequest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.table import CommitTableRequest, CommitTableResponse

from airflow_provider_sml.ml.lake.io import LOCATION, StoreFileIO

STATUS = {
    NoSuchTableError: 404,
    NoSuchNamespaceError: 404,
    TableAlreadyExistsError: 409,
    NamespaceAlreadyExistsError: 409,
    CommitFailedException: 409,
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.headers.get("Authorization") != f"Bearer {self.server.token}":
                self._send(401, {"error": {"message": "wrong token", "type": "NotAuthorizedException", "code": 401}})
                return
            found = self._route([unquote(part) for part in urlsplit(self.path).path.split("/")[2:]], body)
            self._send(204 if found is None else 200, found)
        except Exception as error:
            status = STATUS.get(type(error), 500)
            text = {"error": {"message": str(error), "type": type(error).__name__, "code": status}}
            self._send(status, text)

    do_GET = do_POST = do_HEAD = do_DELETE = _answer

    def _send(self, status, content):
        data = b"" if content is None else (content if isinstance(content, bytes) else json.dumps(content).encode())
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _route(self, parts, body):
        catalog = self.server.catalog
        match (self.command, parts):
            case "GET", ["config"]:
                return {"defaults": {}, "overrides": {}}
            case "POST", ["namespaces"]:
                given = json.loads(body)
                catalog.create_namespace(tuple(given["namespace"]), given.get("properties", {}))
                return {"namespace": given["namespace"], "properties": {}}
            case "GET" | "HEAD", ["namespaces", name]:
                return {"namespace": [name], "properties": catalog.load_namespace_properties(name)}
            case "GET", ["namespaces", name, "tables"]:
                listed = [{"namespace": list(i[:-1]), "name": i[-1]} for i in catalog.list_tables(name)]
                return {"identifiers": listed}
            case "POST", ["namespaces", name, "tables"]:
                given = CreateTableRequest.model_validate_json(body)
                catalog.properties[LOCATION] = given.location.rsplit("/lake/", 1)[0]
                return self._table(
                    catalog.create_table(
                        (name, given.name), given.table_schema, given.location,
                        given.partition_spec, properties=given.properties,
                    )
                )  # fmt: skip
            case "GET" | "HEAD", ["namespaces", name, "tables", table]:
                return self._table(catalog.load_table((name, table)))
            case "POST", ["namespaces", name, "tables", table]:
                given = CommitTableRequest.model_validate_json(body)
                loaded = catalog.load_table((name, table))
                made = catalog.commit_table(loaded, given.requirements, given.updates)
                answer = CommitTableResponse(metadata=made.metadata, metadata_location=made.metadata_location)
                return answer.model_dump_json(by_alias=True).encode()
        raise NoSuchNamespaceError(self.path)

    def _table(self, loaded):
        metadata = loaded.metadata.model_dump_json(by_alias=True)
        return f'{{"metadata-location": "{loaded.metadata_location}", "metadata": {metadata}, "config": {{}}}}'.encode()


@contextlib.contextmanager
def rest_catalog(folder, token):
    """Run the server; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.token = token
    server.catalog = SqlCatalog(
        "server",
        uri=f"sqlite:///{folder}/rest.db",
        **{"py-io-impl": f"{StoreFileIO.__module__}.{StoreFileIO.__name__}", LOCATION: ""},
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
