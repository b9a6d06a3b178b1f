"""What every fake cloud shares: a clock that tests move, faults, a record of calls, a bill, the sources of behaviour.

Nothing here knows a vendor or a wire protocol; the servers of ``testing.aws`` and of other clouds build on it.
"""

from airflow_provider_sml.testing.core.behaviour import Behaviour
from airflow_provider_sml.testing.core.bill import Bill, Line
from airflow_provider_sml.testing.core.calls import Call, Calls
from airflow_provider_sml.testing.core.clock import VirtualClock
from airflow_provider_sml.testing.core.cloud import FakeCloud
from airflow_provider_sml.testing.core.faults import Fault, Faults
from airflow_provider_sml.testing.core.timeline import Phase, Timeline

__all__ = [
    "Behaviour", "Bill", "Call", "Calls", "FakeCloud", "Fault", "Faults", "Line", "Phase", "Timeline", "VirtualClock",
]  # fmt: skip
