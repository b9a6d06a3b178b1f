"""What of a model waits for a person: the questions that its tasks have put into Airflow's own form.

Read from Airflow's own tables with one query; who may see them is decided before. It answers nothing itself.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass, field

#: Questions that are shown at most.
MOST = 50


@dataclass(frozen=True)
class Question:
    """A question without an answer.

    :param dag_id: DAG of the task that asks.
    :param run_id: its run.
    :param task_id: the task.
    :param map_index: -1 for a task that is not mapped.
    :param subject: what is asked.
    :param asked: when.
    :param users: names of those who may answer; empty for everybody who may answer tasks of the DAG.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    subject: str
    asked: dt.datetime
    users: list[str] = field(default_factory=list)


def questions(dag_ids: Collection[str]) -> list[Question]:
    """The questions of some DAGs, the oldest first; none where this Airflow has no such form.

    :param dag_ids: the DAGs.
    """
    if not dag_ids:
        return []
    try:
        from airflow.models.hitl import HITLDetail
    except ImportError:
        return []
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select

    # Before 3.3 a task that asks waits in the triggerer.
    states = [getattr(TaskInstanceState, name, None) for name in ("AWAITING_INPUT", "DEFERRED")]
    query = (
        select(TaskInstance, HITLDetail)
        .join(HITLDetail, HITLDetail.ti_id == TaskInstance.id)
        .where(
            TaskInstance.dag_id.in_(sorted(dag_ids)),
            TaskInstance.state.in_([state for state in states if state is not None]),
            HITLDetail.responded_at.is_(None),
        )
        .order_by(HITLDetail.created_at)
        .limit(MOST)
    )
    with create_session() as session:
        return [
            Question(
                task.dag_id, task.run_id, task.task_id, task.map_index, asked.subject, asked.created_at,
                [str(user.get("name")) for user in asked.assignees or []],
            )
            for task, asked in session.execute(query)
        ]  # fmt: skip
