"""The checks, a row each, in the order in which they are tried: what later ones need comes first.

Neighbours: `machines` and `between` look and judge, `session` tries the rows.
"""

from __future__ import annotations

from tinyllama_mcore.preflight import between, machines
from tinyllama_mcore.preflight.check import Check

CHECKS = (
    Check(name="versions", look=machines.versions, judge=machines.judge_versions),
    Check(name="clock", look=between.clock, judge=between.judge_clock),
    Check(name="memory", look=machines.memory, judge=machines.judge_memory),
    Check(name="disk", look=machines.disk, judge=machines.judge_disk),
    Check(name="shared directory", look=between.shared, judge=between.judge_shared),
    Check(name="data", look=machines.data, judge=machines.judge_data),
    Check(name="GPU", look=machines.gpu, judge=machines.judge_gpu),
    Check(name="address", look=between.address, judge=between.judge_address),
    Check(name="all-reduce", look=between.all_reduce, judge=between.judge_all_reduce),
)
