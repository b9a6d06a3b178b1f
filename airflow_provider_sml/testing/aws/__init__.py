"""A fake AWS over its real wire protocols: SageMaker and its runtime, EMR Serverless, alarms, logs, autoscaling."""

from airflow_provider_sml.testing.aws.cloud import FakeAws

__all__ = ["FakeAws"]
