"""The page "Write an event listener": its code does what it says."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from pathlib import Path

from perdure import registry, workflow

PAGE = (Path(__file__).parents[2] / "docs" / "writing-a-listener.md").read_text()


async def test_the_example_waits_for_its_file(tmp_path: Path) -> None:
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class FileArrived" in c]
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(code, "writing-a-listener.md", "exec", dont_inherit=True), names)
    listener = names["FileArrived"]
    assert isinstance(listener, type)
    assert workflow.wait_for_event(listener, "x") is not None
    file = tmp_path / "today.csv"
    poll = asyncio.ensure_future(listener().poll_for_event(str(file)))
    await asyncio.sleep(0.05)
    assert not poll.done()
    file.write_text("")
    assert await asyncio.wait_for(poll, 5) == str(file)
    await listener().event_checkpointed(str(file))


def test_the_entry_point_and_the_request_are_well_formed() -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert registry.LISTENERS in tomllib.loads(toml)["project"]["entry-points"]
    (body,) = re.findall(r"curl -d '(.*?)'", PAGE)
    assert set(json.loads(body)) == {"event_key", "event_payload"}
