"""The shapes on DBOS with SQLite, in its own environment. Run by ../compare.py."""

from __future__ import annotations

import sys
import time

from common import MEBIBYTES, ROUNDS, at_once, report
from dbos import DBOS, DBOSConfig


@DBOS.step()
def inc(x):
    return x + 1


@DBOS.workflow()
def inc_flow(x):
    return inc(x)


@DBOS.workflow()
def fan_out(n):
    handles = [DBOS.start_workflow(inc_flow, i) for i in range(n)]
    return sum(handle.get_result() for handle in handles)


@DBOS.workflow()
def chain(n):
    x = 0
    for _ in range(n):
        x = inc(x)
    return x


@DBOS.workflow()
def two(x):
    return inc(inc(x))


@DBOS.workflow()
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


@DBOS.workflow()
def sleeper():
    DBOS.sleep(5)
    return 1


@DBOS.step()
def make_bytes():
    return bytes(MEBIBYTES << 20)


@DBOS.step()
def count_bytes(data):
    return len(data)


@DBOS.workflow()
def big():
    return count_bytes(make_bytes())


def main() -> None:
    folder, shapes = sys.argv[1], sys.argv[2:]
    config: DBOSConfig = {
        "name": "shapes",
        "system_database_url": f"sqlite:///{folder}/dbos.sqlite",
        "log_level": "ERROR",
        "run_admin_server": False,
    }
    DBOS(config=config)
    DBOS.launch()
    fan_out(20)
    for shape in shapes:
        for _ in range(ROUNDS.get(shape, 3)):
            began = time.perf_counter()
            if shape == "fan-out 1,000":
                fan_out(1000)
            elif shape == "chain 200":
                assert chain(200) == 200
            elif shape == "300 workflows x 2, started by 32 threads":
                handles = at_once(lambda i: DBOS.start_workflow(two, i))
                assert [h.get_result() for h in handles] == [i + 2 for i in range(300)]
            elif shape == "300 workflows x 2":
                handles = [DBOS.start_workflow(two, i) for i in range(300)]
                results = [h.get_result() for h in handles]
                assert results[0] == 2
            elif shape == "fib(10)":
                assert fib(10) == 55
            elif shape == "1,000 sleeps of 5 s":
                handles = [DBOS.start_workflow(sleeper) for _ in range(1000)]
                [h.get_result() for h in handles]
            elif shape == "256 MiB between tasks":
                assert big() == MEBIBYTES << 20
            else:
                continue
            report(shape, time.perf_counter() - began)
    DBOS.destroy()


if __name__ == "__main__":
    main()
