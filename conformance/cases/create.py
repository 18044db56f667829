"""create: the one primitive that everything rests on (S1, S2)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

from perdure.conformance import clocks, judging, workload
from perdure.conformance.child import ChildContext
from perdure.conformance.observed import Violation, brief
from perdure.conformance.race import LEAD, Round, timed
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.conformance.workload import HEAD, identity_of, make_value
from perdure.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable

B, F = Level.BASE, Level.FULL
MIB = 2**20
PROCESSES = 8


async def creating(store: Any, key: str, data: bytes) -> None:
    await store.create(key, data)


async def create_and_read(store: Any, key: str, data: bytes) -> Any:
    """Create; a loser reads at once what it lost to."""
    try:
        await store.create(key, data)
    except AlreadyExists:
        return "lost", bytes(await store.get(key)), await store.stat(key)
    return "won", data, len(data)


async def race_for_keys(
    t: Trial,
    *,
    processes: int,
    tasks: int,
    rounds: int,
    sizes: tuple[int, ...] = (HEAD,),
    instances: int = 1,
    folder: str = "race",
    **options: Any,
) -> None:
    """Creators race for one key per round; the winner's bytes, and only they, are there afterwards."""
    async with t.crew(processes, **options) as crew:

        def size(n: int) -> int:
            return sizes[n % len(sizes)]

        async def judge(done: Round) -> None:
            n = done.number
            winner = t.one_winner(done)
            found = await t.value(f"{folder}/{n}")
            wanted = make_value(f"{winner.child}.{winner.task}.{n}", size(n))
            t.expect(found == wanted, "S1: the winner's bytes are stored", brief(found), done.timeline())

        await t.race(
            crew, creating, rounds,
            lambda n, i, k: (f"{folder}/{n}", make_value(f"{i}.{k}.{n}", size(n))), judge,
            tasks=tasks, instances=instances,
        )  # fmt: skip


@case("create-01", B, "S1")
async def absent(t: Trial) -> None:
    """create of an absent key stores the value."""
    for i, data in enumerate([b"", b"x", t.bytes(1000), t.bytes(MIB)]):
        await t.store.create(f"a/{i}", data)
        await t.expect_value(f"a/{i}", data, "after create")
        t.same(await t.value(f"a/{i}", t.open()), data, "by another instance")


@case("create-02", B, "S1")
async def present(t: Trial) -> None:
    """create of a present key raises AlreadyExists and changes nothing, for equal data too."""

    async def chunks() -> Any:
        yield b"first"

    async def make(method: str, key: str, data: bytes) -> None:
        if method == "upload":
            await t.store.upload(key, chunks())
        elif method == "create_many":
            await t.store.create_many([(key, data)])
        else:
            await getattr(t.store, method)(key, data)

    for method in ("create", "put", "upload", "create_many"):
        key = f"p/{method}"
        await make(method, key, b"first")
        for store in (t.store, t.open()):
            for data in (b"second", b"first", b"", t.bytes(100_000)):
                error = await t.refuses(store.create(key, data), AlreadyExists, f"S1: create of a key made by {method}")
                t.expect(getattr(error, "key", None) == key, "the error names the key", getattr(error, "key", None))
                await t.expect_value(key, b"first", f"after a refused create ({method})")
    for method in ("create", "put"):
        await make(method, f"e/{method}", b"")
        await t.refuses(t.store.create(f"e/{method}", b"x"), AlreadyExists, "S1: a 0-byte value is present")
        await t.refuses(t.store.create(f"e/{method}", b""), AlreadyExists, "S1: equal, 0-byte data too")
        await t.expect_value(f"e/{method}", b"", "after a refused create")


@case("create-03", B, "S1")
async def after_delete(t: Trial) -> None:
    """After delete a key can be created anew, again and again."""
    for i in range(5):
        data = f"life {i}".encode()
        await t.store.create("k", data)
        await t.expect_value("k", data, "after create")
        await t.refuses(t.store.create("k", b"x"), AlreadyExists, "second create")
        await t.store.delete("k")
        await t.expect_value("k", None, "after delete")
    await t.store.put("k", b"put")
    await t.store.delete("k")
    await t.store.create("k", b"end")
    await t.expect_value("k", b"end", "created after put and delete")


async def race_of_tasks(t: Trial, stores: list[Any]) -> None:
    for n in range(20):
        attempts = await asyncio.gather(
            *(timed(0, i, s.create, f"k/{n}", f"{i}.{n}".encode()) for i, s in enumerate(stores))
        )
        done = Round(n, list(attempts))
        t.round()
        t.check_foreign(done)
        winner = t.one_winner(done)
        t.same(await t.value(f"k/{n}"), f"{winner.task}.{n}".encode(), "the winner's bytes")


@case("create-04", B, "S1", Certainty.STOCHASTIC)
async def tasks_on_one_instance(t: Trial) -> None:
    """Of 16 tasks that create one key on one instance, one wins, and its bytes are stored; 20 keys."""
    await race_of_tasks(t, [t.store] * 16)


@case("create-05", B, "S1", Certainty.STOCHASTIC)
async def tasks_on_instances(t: Trial) -> None:
    """The same with 16 instances."""
    await race_of_tasks(t, [t.open() for _ in range(16)])


@case("create-06", B, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=3)
async def processes_race(t: Trial) -> None:
    """Of 8 processes × 2 tasks that create one key, one wins, and its bytes are stored; 40 keys."""
    await race_for_keys(t, processes=PROCESSES, tasks=2, rounds=t.rounds(40, 20))
    t.shared.shown["multi_process"] = True


@case("create-07", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, timeout=180, cost=20)
async def sizes_race(t: Trial) -> None:
    """As create-06: 300 keys, values from 1 byte to 6 MiB, and 5 keys of max_create_bytes (at most 128 MiB)."""
    await race_for_keys(t, processes=PROCESSES, tasks=2, rounds=t.rounds(220, 40), folder="small")
    await race_for_keys(t, processes=PROCESSES, tasks=2, rounds=t.rounds(50, 10), sizes=(65536,), folder="mid")
    await race_for_keys(t, processes=PROCESSES, tasks=1, rounds=t.rounds(20, 5), sizes=(MIB + 1,), folder="mib")
    await race_for_keys(t, processes=4, tasks=1, rounds=t.rounds(10, 5), sizes=(6 * MIB,), folder="six")
    limit = min(t.capabilities.max_create_bytes or 2**62, 128 * MIB)
    async with t.crew(2) as crew:
        wins = []
        for n in range(5):
            for i, child in enumerate(crew):
                await child.start(_create_large, t.url, f"large/{n}", i, limit)
            for child in crew:
                assert await child.message() == "ready"
            for child in crew:
                await child.send(time.monotonic() + LEAD)
            outcomes = [await child.result() for child in crew]
            wins.append(outcomes.count("won"))
            t.expect(wins[-1] == 1, f"S1: one of two creators of {limit} bytes wins", outcomes)
            winner = outcomes.index("won")
            t.same(await t.size(f"large/{n}"), limit, "size of the large value")
            t.same(bytes(await t.store.get(f"large/{n}", limit - 1)), bytes([winner]), "last byte is the winner's")
            t.same(bytes(await t.store.get(f"large/{n}", 0, 1)), bytes([winner]), "first byte is the winner's")
            await t.store.delete(f"large/{n}")


async def _create_large(c: ChildContext, url: str, key: str, number: int, size: int) -> str:
    data = bytes([number]) * size
    store = c.open(url)
    await c.send("ready")
    await c.at(await c.receive())
    try:
        await store.create(key, data)
    except AlreadyExists:
        return "lost"
    return "won"


@case("create-08", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, timeout=120, cost=8)
async def crowds(t: Trial) -> None:
    """Crowds of 2, 3, 4, 5, 8, 16 and 32 creators, as processes and as tasks, each have one winner."""
    for crowd in (2, 3, 4, 5, 8, 16, 32):
        processes = min(crowd, 8)
        await race_for_keys(
            t, processes=processes, tasks=max(1, crowd // processes), rounds=t.rounds(10, 4), folder=f"p{crowd}"
        )
        for n in range(4):
            stores = [t.store] * crowd
            attempts = await asyncio.gather(
                *(timed(0, i, s.create, f"t{crowd}/{n}", f"{i}".encode()) for i, s in enumerate(stores))
            )
            t.one_winner(Round(n, list(attempts)))


@case("create-09", B, "S1/S2", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=2)
async def losers_read(t: Trial) -> None:
    """Whoever gets AlreadyExists reads a whole value at once, by get and stat."""
    async with t.crew(4) as crew:
        size = 200_000

        def judge(done: Round) -> None:
            outcomes = [a for a in done.attempts if a.error is None]
            for a in done.attempts:
                t.expect(
                    a.error is None, "S1: AlreadyExists means that a whole value can be read",
                    f"{type(a.error).__name__}: {a.error}", done.timeline(),
                )  # fmt: skip
            winners = [a for a in outcomes if a.result[0] == "won"]
            t.expect(len(winners) == 1, "S1: one winner", len(winners), done.timeline())
            for a in outcomes:
                t.expect(
                    a.result[1] == winners[0].result[1] and a.result[2] == size,
                    "S2: a loser reads the winner's whole value", brief(a.result), done.timeline(),
                )  # fmt: skip

        await t.race(
            crew, create_and_read, t.rounds(25, 10),
            lambda n, i, k: (f"k/{n}", make_value(f"{i}.{k}.{n}", size)), judge, tasks=2,
        )  # fmt: skip


async def watch(store: Any, key: str, stop: asyncio.Event, sizes: set[int]) -> int:
    """Poll one key by get, stat and list until stopped; the number of looks. Raises on half a value."""
    looks = 0
    folder = key.rpartition("/")[0] + "/"
    while not stop.is_set():
        with contextlib.suppress(NotFound):
            found = identity_of(await store.get(key))
            if found.startswith("torn"):
                raise Violation(f"S2: get saw a {found}")
        with contextlib.suppress(NotFound):
            size = await store.stat(key)
            if size not in sizes:
                raise Violation(f"S2: stat saw {size} bytes, only {sizes} are whole")
        async for name, size in store.list(folder):
            if name != key or size not in sizes:
                raise Violation(f"S2: list saw {name!r} with {size} bytes")
        with contextlib.suppress(NotFound):
            found = identity_of(b"".join([bytes(c) async for c in store.download(key)]))
            if found.startswith("torn"):
                raise Violation(f"S2: download saw a {found}")
        looks += 1
        await asyncio.sleep(0.0005)
    return looks


async def watcher(c: ChildContext, url: str, keys: list[str], sizes: set[int]) -> int:
    """Poll keys one after the other; the parent says when to go on. Returns the number of looks."""
    store, looks = c.open(url), 0
    for key in keys:
        stop = asyncio.Event()
        task = asyncio.create_task(watch(store, key, stop, sizes))
        await c.send("watching")
        await c.receive()
        stop.set()
        looks += await task
    return looks


@case("create-10", B, "S2", Certainty.STOCHASTIC, cost=3)
async def whole_or_absent(t: Trial) -> None:
    """While 8 MiB is created, readers and listers in another process see no value or the whole one."""
    size = min(8 * MIB, t.capabilities.max_create_bytes or 8 * MIB)
    keys = [f"w{i}/k" for i in range(6)]
    if t.facts.gap("multi_process") is not None:
        for key in keys:
            stop = asyncio.Event()
            task = asyncio.create_task(watch(t.open(), key, stop, {size}))
            await t.store.create(key, make_value("w", size))
            await asyncio.sleep(0.01)
            stop.set()
            await task
            t.round()
        t.same(await t.size(keys[0]), size, "size in the end")
        return
    async with t.child() as child:
        await child.start(watcher, t.url, keys, {size})
        for key in keys:
            t.expect(await child.message() == "watching", "the watcher watches", "")
            await asyncio.sleep(0.02)
            await t.store.create(key, make_value("w", size))
            t.round()
            await child.send("next")
        looks = await child.result()
    t.evidence.numbers["looks"] = looks
    if looks < len(keys):
        t.cannot(f"the watcher looked only {looks} times while {len(keys)} values were created")


async def create_once(c: ChildContext, url: str, key: str, size: int, identity: str) -> str:
    store = c.open(url)
    async for _ in store.list("warm", limit=1):
        pass
    await c.send("ready")
    await c.at(await c.receive())
    await store.create(key, make_value(identity, size))
    return "done"


@case("create-11", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, timeout=120, cost=8)
async def winner_killed(t: Trial) -> None:
    """A creator killed inside create leaves a whole value or a key that can be created within 5 s."""
    size, inside = 2 * MIB, 0
    start = time.monotonic()
    await t.store.create("measure", make_value("m", size))
    duration = max(0.002, time.monotonic() - start)
    for n in range(20):
        key = f"k/{n}"
        async with t.child() as child:
            await child.start(create_once, t.url, key, size, f"killed.{n}")
            assert await child.message() == "ready"
            instant = time.monotonic() + LEAD
            await child.send(instant)
            await asyncio.sleep(LEAD + duration * (n % 10 + 0.5) / 10)
            await child.kill()
        await t.settle()
        found = await t.value(key)
        if found is not None:
            t.same(identity_of(found), f"killed.{n}", "S2: the value of a killed creator is whole")
        else:
            inside += 1
            end = time.monotonic() + 5
            while True:
                try:
                    await t.store.create(key, make_value("next", HEAD))
                except AlreadyExists:
                    t.same(await t.value(key) is not None, True, "AlreadyExists means a readable value")
                    break
                except StoreUnavailable as error:
                    t.expect(time.monotonic() < end, "the key can be created within 5 s after the kill", error)
                    await asyncio.sleep(0.1)
                else:
                    t.same(identity_of(await t.value(key) or b""), "next", "the new value is stored")
                    break
        t.round()
    t.evidence.numbers["killed before the value was there"] = inside
    t.expect(True, "", "")


async def mixed(t: Trial, methods: tuple[str, ...], rule: str, *, processes: int = 4, calls: int = 60) -> None:
    history = workload.History()
    async with t.crew(processes) as crew:
        for phase in range(t.rounds(5, 2)):
            # About 20 calls per key: enough to meet, few enough to be judged.
            keys = tuple(f"p{phase}/{i}" for i in range(max(4, processes * calls // 20)))
            plan = workload.Plan(keys, methods, calls, t.seed % 100_000 + phase)
            await workload.run_plan(crew, t.url, plan, history, offset=processes * phase)
            t.round()
    judging.linearizable(t, history, rule)


@case("create-12", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=4)
async def against_delete(t: Trial) -> None:
    """create against delete from 4 processes: the history of each key is linearizable."""
    await mixed(t, ("create", "create", "create", "delete", "get", "stat"), "S1")


@case("create-13", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=4)
async def against_put(t: Trial) -> None:
    """create against put, upload and delete: the history of each key is linearizable."""
    await mixed(t, ("create", "create", "put", "upload", "delete", "get"), "S1")


async def skewed_creator(c: ChildContext, number: int, url: str, rounds: int, offset: float) -> Any:
    """Create one key per round with a clock that is wrong by ``offset`` seconds."""
    clocks.shift(offset)
    store, won = c.open(url), []
    await c.send("ready")
    for n in range(rounds):
        await c.at(await c.receive())
        try:
            await store.create(f"k/{n}", make_value(f"{number}.{n}", HEAD))
        except AlreadyExists:
            await c.send(("lost", identity_of(await store.get(f"k/{n}"))))
        else:
            won.append(n)
            await c.send(("won", f"{number}.{n}"))
    return clocks.moved()


@case("create-14", F, "S1/C4", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=3)
async def wrong_clocks(t: Trial) -> None:
    """Racers whose clocks are wrong by five minutes either way still have one winner."""
    offsets = [-300.0, 300.0, 0.0, 299.0]
    rounds = t.rounds(40, 15)
    async with t.crew(len(offsets)) as crew:
        for i, child in enumerate(crew):
            await child.start(skewed_creator, i, t.url, rounds, offsets[i])
        for child in crew:
            assert await child.message() == "ready"
        for n in range(rounds):
            # The fast and the slow clock take turns at being late, so that age never decides by luck.
            base = time.monotonic() + LEAD
            for i, child in enumerate(crew):
                await child.send(base + 0.003 * ((i + n) % len(crew)) * (n % 2))
            answers = [await c.message() for c in crew]
            winners = [a[1] for a in answers if a[0] == "won"]
            t.expect(len(winners) == 1, "S1/C4: one winner whatever the clocks say", answers)
            t.expect(all(a[1] == winners[0] for a in answers), "every loser reads the winner's value", answers)
            t.same(identity_of(await t.value(f"k/{n}") or b""), winners[0], "the stored value is the winner's")
            t.round()
        for wanted, child in zip(offsets, crew, strict=True):
            t.fault(abs(await child.result() - wanted) < 2)
    t.note(clocks.NOTE)


async def append_entries(c: ChildContext, number: int, url: str, target: int) -> list[int]:
    """The journal's shape: read the last number, create the next, until ``target`` entries are there."""
    store = c.open(url)
    await c.send("ready")
    await c.at(await c.receive())
    mine: list[int] = []
    while True:
        last = -1
        async for key, _ in store.list("j/", start_after=f"j/{mine[-1]:06}" if mine else None):
            last = int(key[2:])
        last = max([last, *mine])
        if last + 1 >= target:
            return mine
        try:
            await store.create(f"j/{last + 1:06}", make_value(f"{number}.{last + 1}", HEAD))
        except AlreadyExists:
            continue
        mine.append(last + 1)


@case("create-15", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=4)
async def journal_shape(t: Trial) -> None:
    """4 processes append the next number after reading the last: no gap, no double, each entry one owner."""
    target = t.rounds(200, 60)
    async with t.crew(4) as crew:
        for i, child in enumerate(crew):
            await child.start(append_entries, i, t.url, target)
        for child in crew:
            assert await child.message() == "ready"
        instant = time.monotonic() + LEAD
        for child in crew:
            await child.send(instant)
        owned = [await c.result() for c in crew]
    t.evidence.rounds = target
    claimed = sorted(n for mine in owned for n in mine)
    t.expect(claimed == list(range(target)), "each number was won exactly once", f"{len(claimed)} wins of {target}")
    for i, mine in enumerate(owned):
        for n in mine:
            t.same(identity_of(await t.value(f"j/{n:06}") or b""), f"{i}.{n}", f"entry {n} is its owner's")
    t.same(await t.keys("j/"), [f"j/{n:06}" for n in range(target)], "entries listed")


async def count_up(c: ChildContext, number: int, url: str, wanted: int) -> list[int]:
    store = c.open(url)
    await c.send("ready")
    await c.at(await c.receive())
    mine: list[int] = []
    n = 0
    while len(mine) < wanted:
        try:
            await store.create(f"c/{n}", f"{number}".encode())
            mine.append(n)
        except AlreadyExists:
            pass
        n += 1
    return mine


@case("create-16", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=4)
async def counter(t: Trial) -> None:
    """8 processes with 25 successes each make exactly 200 keys."""
    async with t.crew(PROCESSES) as crew:
        for i, child in enumerate(crew):
            await child.start(count_up, i, t.url, 25)
        for child in crew:
            assert await child.message() == "ready"
        instant = time.monotonic() + LEAD
        for child in crew:
            await child.send(instant)
        owned = [await c.result() for c in crew]
    numbers = sorted(n for mine in owned for n in mine)
    t.evidence.rounds = 200
    t.expect(numbers == list(range(200)), "200 successes are 200 different keys, without a gap", f"{len(set(numbers))}")
    t.same(len(await t.keys("c/")), 200, "keys listed")
    for i, mine in enumerate(owned):
        for n in mine[:5]:
            t.same(await t.value(f"c/{n}"), f"{i}".encode(), "a key holds its winner's value")


async def fork_and_race(c: ChildContext, url: str, rounds: int) -> list[list[str]]:
    """Fork 4 children that inherit one open store and race; the identities that won, per round."""
    store = c.open(url)
    await store.create("before-fork", b"x")
    pipes, pids = [], []
    start = time.monotonic() + 0.15
    for number in range(4):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(reading)
                asyncio.run(_forked(store, number, rounds, start, writing))
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        pipes.append(reading)
        pids.append(pid)
    texts = []
    for fd in pipes:
        texts.append(await asyncio.to_thread(_drain, fd))
    for pid in pids:
        os.waitpid(pid, 0)
    return [text.split() for text in texts]


def _drain(fd: int) -> str:
    with os.fdopen(fd) as stream:
        return stream.read()


async def _forked(store: Any, number: int, rounds: int, start: float, writing: int) -> None:
    out: list[str] = []
    for n in range(rounds):
        await ChildContext.at(start + n * 0.02)
        try:
            await store.create(f"f/{n}", f"{number}".encode())
            out.append(f"won:{n}")
        except AlreadyExists:
            out.append(f"lost:{n}")
        except StoreError as error:
            out.append(f"{type(error).__name__}:{n}")
    os.write(writing, " ".join(out).encode())
    os.close(writing)


@case("create-17", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=4)
async def inherited_instance(t: Trial) -> None:
    """4 forked children race through the instance they inherited: one winner per key."""
    rounds = t.rounds(40, 20)
    async with t.child() as child:
        answers = await t.within(60, child.call(fork_and_race, t.url, rounds), "C3: forked children use the store")
    for i, answer in enumerate(answers):
        t.expect(len(answer) == rounds, f"child {i} answered each round", f"{len(answer)} of {rounds}")
    for n in range(rounds):
        round_ = [a[n] for a in answers]
        t.expect(sum(x.startswith("won") for x in round_) == 1, "S1: one winner", round_)
        t.expect(all(x.split(":")[0] in ("won", "lost") for x in round_), "losers get AlreadyExists", round_)
        winner = next(i for i, x in enumerate(round_) if x.startswith("won"))
        t.same(await t.value(f"f/{n}"), f"{winner}".encode(), "the winner's bytes")
        t.round()


def become_stranger(number: int, folder: str) -> None:
    """Give this process a home, temporary folder, cwd, host name and mount table of its own."""
    import ctypes
    import socket
    import tempfile

    own = os.path.join(folder, f"stranger-{number}")
    os.makedirs(own, exist_ok=True)
    for name in list(os.environ):
        if name not in ("PATH", "PYTHONPATH") and not name.startswith(("AWS_", "GOOGLE_", "AZURE_", "PERDURE_")):
            del os.environ[name]
    os.environ.update(HOME=own, TMPDIR=own, LANG="C", TZ="Asia/Tokyo" if number % 2 else "America/Lima")
    tempfile.tempdir = None
    os.chdir(own)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000 | 0x04000000) == 0:  # CLONE_NEWNS | CLONE_NEWUTS
        with contextlib.suppress(OSError):
            socket.sethostname(f"stranger-{number}")


@case("create-18", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=4)
async def strangers(t: Trial) -> None:
    """Racers that share nothing but the store (own TMPDIR, HOME, cwd, host name, environment, and mount
    namespace where allowed) have one winner."""
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="perdure-strangers-")
    try:
        crew = [await t.nursery.child(setup=(become_stranger, (i, folder))) for i in range(4)]
        try:

            async def judge(done: Round) -> None:
                winner = t.one_winner(done)
                wanted = make_value(f"{winner.child}.{done.number}", HEAD)
                t.same(await t.value(f"s/{done.number}"), wanted, "winner's bytes")

            await t.race(
                crew, creating, t.rounds(40, 20),
                lambda n, i, k: (f"s/{n}", make_value(f"{i}.{n}", HEAD)), judge,
            )  # fmt: skip
            t.shared.shown["strangers"] = True
        finally:
            for child in crew:
                await child.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@case("create-19", B, "S1", Certainty.STOCHASTIC)
async def different_keys(t: Trial) -> None:
    """50 creates of different keys at once all succeed."""
    for n in range(3):
        data = {f"d{n}/{i}": f"{i}".encode() for i in range(50)}
        results = await asyncio.gather(*(t.store.create(k, v) for k, v in data.items()), return_exceptions=True)
        t.expect(all(r is None for r in results), "none is refused", [r for r in results if r is not None][:3])
        for key, value in data.items():
            t.same(await t.value(key), value, "its own bytes")
        t.round()
