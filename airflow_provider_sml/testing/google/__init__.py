"""Fakes of Google Cloud: ``cloud.FakeGoogle`` (Dataproc Serverless), and a gateway before BigQuery's emulator."""
