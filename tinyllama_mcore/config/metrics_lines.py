"""The lines of a metrics file (`--metrics-file`): one JSON object each, an iteration or an event of the run.

An iteration is a line without the key "event": the fields of `training.metrics.StepRecord`. Every line has "iteration",
as its first key, and "time", in seconds since 1970. Neighbours: `training.json_lines` writes them,
`reporting.metrics_file` reads all of them; who wants the iterations alone takes `steps`.
"""

from __future__ import annotations

import json
from typing import Any

LINE_START = b'{"iteration": '
"""How every line begins: what tells one that was cut short from a file that is somebody else's."""
EVENTS = {
    "start": "a job began at this iteration: its configuration, environment, and what changed since the checkpoint",
    "validation": "the model was evaluated after this iteration",
    "save": "training waited for the checkpoint of this iteration",
    "blend": "this iteration is the first with samples of a planned blend",
    "rollback": "an earlier checkpoint, of this iteration, was taken up again",
}
"""Value of "event" -> what it tells."""
HISTORY = frozenset({"start", "rollback"})
"""Events that stay where a run goes back to an earlier iteration; the other lines are then told anew."""


def steps(text: str) -> list[dict[str, Any]]:
    """The iterations of a metrics file, in order. ValueError for a line that is no JSON."""
    return [line for line in map(json.loads, text.splitlines()) if "event" not in line]
