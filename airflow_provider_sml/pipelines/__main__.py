"""``python -m airflow_provider_sml.pipelines``: ``check FILE ...`` checks specs, ``schema`` prints their JSON schema,
``init NAME --from FILE`` writes a first one for a CSV file.
"""

from __future__ import annotations

import argparse
import json
import sys

from airflow_provider_sml.pipelines.init import add_command
from airflow_provider_sml.pipelines.loader import PipelineSpecError, load_spec
from airflow_provider_sml.pipelines.schema import spec_schema


def main(arguments: list[str] | None = None) -> int:
    """Run the command; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_sml.pipelines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check spec files")
    check.add_argument("files", nargs="+", metavar="FILE")
    check.add_argument("--profile", help="lay FILE's profile of this name over it")
    commands.add_parser("schema", help="print the JSON schema of a spec")
    add_command(commands)
    given = parser.parse_args(arguments)
    if given.command == "init":
        return int(given.run(given))
    if given.command == "schema":
        print(json.dumps(spec_schema(), indent=1))
        return 0
    failed = 0
    for path in given.files:
        try:
            spec = load_spec(path, given.profile)
        except PipelineSpecError as error:
            print(f"PipelineSpecError: {error}", file=sys.stderr)
            failed += 1
        else:
            contract = spec.contract
            print(f"{path}: {spec.name}: {len(contract.columns)} columns, {len(spec.features)} features, all right")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
