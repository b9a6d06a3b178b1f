"""The test that the documentation shows is a test of its DAG."""

from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "fake-clouds.md"


def test_the_documented_test_passes(dag_project, fake_aws):
    dag, test = (block.partition("```")[0] for block in PAGE.read_text().split("```python\n")[2:4])
    dag_project.write("churn.py", dag)
    names = {}
    exec(test, names)
    names["test_training_survives_the_loss_of_its_machines"](dag_project, fake_aws)
