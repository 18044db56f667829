"""DAG nodes of waits and timers: what `workflow.wait_for_event` and `workflow.sleep` return.

Owns that such a node can be given options, although it has no function to give them to.
"""

from __future__ import annotations

from typing import Any

from ray.dag import FunctionNode

from perdure.onray.options import LABEL, own_options


class EventNode(FunctionNode):  # type: ignore[misc]
    """A node whose value comes from outside. Bind it like any other node."""

    def options(self, **given: Any) -> EventNode:
        """A copy of this node with options: ``max_retries`` and what `perdure.workflow.options` gives.

        ``wait_for_event(Orders, "eu").options(max_retries=-1, **workflow.options(catch_exceptions=True))``:
        ``max_retries`` is how often a listener that raises is tried again (default 3, -1: for ever). Options given
        before are kept where they are not given again.

        Raises ValueError: any other option; a wait runs in no worker, so Ray's options mean nothing to it.
        """
        import json

        retries = given.get("max_retries")
        foreign = sorted(set(given) - {"max_retries", "_labels"})
        if foreign:
            raise ValueError(
                f"a wait or timer has no option {', '.join(foreign)}: expected max_retries and workflow.options(...)"
            )
        if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or retries < -1):
            raise ValueError(f"max_retries={retries!r:.100}: expected an int of at least -1 (-1: no limit)")
        options = dict(self._bound_options)
        merged = own_options(options) | own_options(given)
        options |= {"max_retries": retries} if retries is not None else {}
        options["_labels"] = {LABEL: json.dumps(merged, sort_keys=True)}
        return EventNode(self._body, list(self._bound_args), dict(self._bound_kwargs), options)

    def _copy_impl(
        self, new_args: list[Any], new_kwargs: dict[str, Any], new_options: dict[str, Any], new_other: dict[str, Any]
    ) -> EventNode:
        return EventNode(self._body, new_args, new_kwargs, new_options, other_args_to_resolve=new_other)


def event_node(marker: Any, *args: Any, **kwargs: Any) -> EventNode:
    """A node of one of the markers in `perdure.onray.dag`."""
    return EventNode(marker._function, list(args), kwargs, {})
