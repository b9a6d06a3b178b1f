"""What tasks leave in XCom beside their results: links, costs."""

import contextlib
import json


def pushed(dag_id, key):
    """The latest value of a key that a task of a DAG has put into XCom."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        query = session.query(XComModel.value).filter(XComModel.key == key, XComModel.dag_id == dag_id)
        value = query.order_by(XComModel.timestamp.desc()).first()[0]
    with contextlib.suppress(TypeError, ValueError):
        return json.loads(value)
    return value


def console_page(dag_id):
    """The latest page of a job that a task of a DAG has linked."""
    return pushed(dag_id, "sml_console")
