"""The page docs/faults.md: cells noted by tests, written at the end of a run where SML_WRITE_FAULTS names the file."""

from pathlib import Path

#: By section: order and title of each row, with its two cells.
ROWS = {"sagemaker": {}, "vertex": {}}
#: Rows below those of the cases.
KILLED, ENDPOINTS = 80, 90


def note(section, order, title, who, cell):
    """Keep a cell.

    :param section: ``sagemaker`` or ``vertex``.
    :param order: of the row in its table.
    :param title: of the row.
    :param who: ``official`` or ``ours``.
    :param cell: what is to be read there.
    """
    ROWS[section].setdefault((order, title), {})[who] = cell


def jobs_cell(state, created, running, cost, result, tries):
    """The cell of a training.

    :param state: of the DAG run.
    :param created: jobs that exist in the end.
    :param running: of these, how many are left running.
    :param cost: USD of all.
    :param result: what the task gave to XCom.
    :param tries: creations that were asked for.
    """
    colour = {"success": "green", "failed": "red"}[state]
    left = f", **{running} left running**" if running else ""
    size = len(str(result)) if result is not None else 0
    asked = f"{tries} creation{'s' * (tries != 1)} asked"
    return f"{colour}, {created} job{'s' * (created != 1)}{left}; {cost:.4f} USD, {size} B, {asked}"


def write(target):
    """Write the page."""
    text = _HEAD + _table("sagemaker") + _VERTEX + _table("vertex")
    Path(target).write_text(text)


def _table(section):
    lines = ["| fault | official operator | ours |", "|---|---|---|"]
    for (_, title), cells in sorted(ROWS[section].items()):
        lines.append(f"| {title} | {cells.get('official', '')} | {cells.get('ours', '')} |")
    return "\n".join(lines) + "\n"


_HEAD = """# Faults

What a fault of SageMaker does to a task, with the official operator and with ours, each through `dag.test()` (a killed
worker: a real worker process) with unmodified clients against the fake SageMaker of `airflow_provider_sml.testing`.
`scripts/faults.sh` makes this page from tests that also hold both columns to what they say: `test_faults.py`,
`test_faults_vertex.py` and `test_killed_workers.py` in `tests/operators`.

Each cell: the task's colour, the jobs that exist in the end, what they cost (a job that is left running goes on
costing), the size of the result in XCom, and how often a creation was asked for. Clients of boto3 try a call twice
here; by default they try it five times, which takes longer and shows the same.

"""
_VERTEX = """
## Vertex AI

The same for `CreateCustomJobOperator`, `VertexTrainOperator` and the two `DeployModelOperator`s, against the fake
Vertex AI.

"""
