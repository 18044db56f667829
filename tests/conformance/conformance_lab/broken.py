"""The table of broken stores: each is a right store with one fault, and the cases that must catch it."""

from __future__ import annotations

import dataclasses

from conformance_lab import broken_keys as k
from conformance_lab import broken_values as v
from conformance_lab import broken_wire as n
from conformance_lab import broken_writes as w
from conformance_lab.folder import FolderStore
from conformance_lab.wire import WireStore


@dataclasses.dataclass(frozen=True, slots=True)
class Broken:
    """``fault`` in words; ``caught_by``: the ids that must FAIL it; ``sloppy``: the server has the fault."""

    fault: str
    store: type
    caught_by: tuple[str, ...]
    sloppy: str = ""

    @property
    def wire(self) -> bool:
        return issubclass(self.store, WireStore)


def broken(fault: str, store: type, caught_by: str, sloppy: str = "") -> Broken:
    return Broken(fault, store, tuple(caught_by.split()), sloppy)


BROKEN = [
    # keys
    broken("folds case", k.FoldsCase, "key-01 key-08 key-15"),
    broken("strips slashes of keys", k.StripsSlashes, "key-02"),
    broken("resolves dots in keys", k.ResolvesDots, "key-03"),
    broken("drops control characters", k.DropsControls, "key-04"),
    broken("percent-decodes keys", k.PercentDecodes, "key-05 list-20"),
    broken("drops joiners", k.DropsJoiners, "key-06"),
    broken("NFC-normalises keys", k.NormalisesNfc, "key-07"),
    broken("cuts segments at 128 bytes", k.CutsSegments, "key-09 key-11"),
    broken("cuts long keys", k.CutsLongKeys, "key-10"),
    broken("does not list a key above another", k.HidesKeysAboveKeys, "key-12"),
    broken("prefix is a string prefix of siblings", k.SeesSiblings, "key-13"),
    broken("keys are raw paths", k.RawPaths, "key-14"),
    # values
    broken("0 bytes are absence", v.EmptyIsAbsent, "value-01"),
    broken("loses the last byte of a page", v.LosesLastByte, "value-02"),
    broken("text mode", v.FixesLineEnds, "value-03"),
    broken("cuts at 8 MiB", v.CutsAt8Mib, "value-04"),
    broken("cuts at 64 MiB", v.CutsAt64Mib, "value-05"),
    broken("takes str", v.TakesText, "value-06"),
    broken("keeps the caller's buffer", v.KeepsCallersBuffer, "value-07"),
    broken("maps files that are overwritten in place", v.MappedInPlace, "value-08"),
    broken("does not enforce its limits", v.NoLimits, "value-09"),
    # create
    broken("appends a line end", v.NewlineAtEnd, "create-01"),
    broken("create ignores the condition", w.IgnoresCondition, "create-02 cap-08"),
    broken("equal content counts as created", w.EqualIsCreated, "create-02"),
    broken("a deleted key can't be created", w.Graveyard, "create-03"),
    broken("create = exists, then write", w.ExistsThenWrite,
           "create-04 create-05 create-06 create-07 create-08 create-12 create-13 create-15 create-16 linear-01"),
    broken("create writes into the final name", w.WritesFinalName, "create-09 create-10 crash-01 crash-03 cancel-01"),
    broken("lock file stays after a kill", w.LockFile, "create-11 crash-07"),
    broken("values expire by wall clock", v.ExpiresByClock, "clock-01 create-14"),
    broken("a forked copy is not exclusive", w.ForkLosesExclusion, "create-17"),
    broken("locks in TMPDIR", w.LockInTemporaryFolder, "create-18"),
    broken("refuses more than 30 calls at once", v.Crowded, "create-19"),
    broken("a cancelled create blocks the key", w.WritesFinalName, "cancel-05"),
    # put
    broken("put keeps the tail", w.KeepsTheTail, "put-01"),
    broken("put truncates first", w.TruncatesFirst, "put-02 put-03 crash-04 cancel-02 get-07"),
    broken("replace = delete + create", w.DeleteThenCreate, "put-02"),
    broken("caches what it has read", v.CachesReads, "put-04 put-05 delete-04 stat-04"),
    broken("reads a lagging replica", v.LaggingReplica, "put-06"),
    broken("one temporary name per key", w.OneTemporaryName, "put-07 stream-07"),
    broken("a failing source publishes its part", v.PublishesPartial, "put-08 stream-03"),
    broken("the newest clock wins", w.NewestClockWins, "put-09"),
    broken("keeps old versions", w.KeepsOldVersions, "put-10"),
    # get and stat
    broken('missing key gives b""', v.MissingIsEmpty, "get-01"),
    broken("range end inclusive", v.EndInclusive, "get-02 model-01 model-02"),
    broken("range past the end raises", v.PastEndRaises, "get-03"),
    broken("negative start means suffix", v.NegativeIsSuffix, "get-04"),
    broken("ranges of at most 64 KiB", v.ShortRanges, "get-05"),
    broken("remembers absence", v.CachesAbsence, "get-06 stat-05"),
    broken("concurrent gets share a result", v.OneResult, "get-08"),
    broken("leaks a descriptor per miss", v.LeaksDescriptors, "get-09"),
    broken("stat in blocks", v.StatInBlocks, "stat-01"),
    broken("stat of a missing key is 0", v.StatMissingIsZero, "stat-02"),
    broken("remembers sizes", v.SkewedStat, "stat-03"),
    # list
    broken("prefix is a glob", k.GlobPrefix, "list-01"),
    broken("prefix is a folder", k.FolderPrefix, "list-02"),
    broken("unsorted list", k.Unsorted, "list-03"),
    broken("sorted folder by folder", k.SortsByFolder, "list-04"),
    broken("sorted as UTF-16", k.SortsAsUtf16, "list-05"),
    broken("list sorted case-insensitively", k.SortsWithoutCase, "list-06"),
    broken("start_after inclusive", k.StartAfterInclusive, "list-07 list-10"),
    broken("start_after skips what it begins", k.StartAfterSkipsPrefix, "list-08"),
    broken("limit counts before the filter", k.LimitBeforeFilter, "list-09"),
    broken("sizes of the first write", k.SizesOfCreation, "list-11"),
    broken("late index", k.LateIndex, "list-12 linear-03"),
    broken("delete is lazy", k.LazyDelete, "delete-01 delete-07 list-13"),
    broken("list from a cache of this instance", k.CachesListing, "list-14"),
    broken("stops at 5,000 keys", k.StopsAt5000, "list-15 list-16"),
    broken("page border yields a key twice", k.BorderTwice, "list-16"),
    broken("pages by offset", k.OffsetPages, "list-17 list-18"),
    broken("temporary files are listed", k.ListsTemporary, "list-19"),
    broken("leaves a task per listing", k.LeavesListingTasks, "list-21"),
    broken("one cursor per instance", k.OneCursor, "list-22"),
    broken("tombstones slow the listing", k.Tombstones, "list-23"),
    # delete and batches
    broken("delete of a missing key raises", k.DeleteRaises, "delete-02 delete-05"),
    broken("delete removes the subtree", k.DeletesSubtree, "delete-03"),
    broken("deletes at aclose", k.DeleteInMemory, "delete-06"),
    broken("download reopens per chunk", v.ReopensPerChunk, "delete-08 stream-08"),
    broken("get_many sorted, not aligned", k.GetManySorted, "many-01"),
    broken("create_many stops at a refusal", k.CreateManyStops, "many-02"),
    broken("create_many checks, then writes", w.ExistsThenWriteManyOnly, "many-03"),
    broken("create_many takes 400", k.CreateMany500, "many-04"),
    broken("delete_prefix ignores the slash", k.DeletePrefixOfFolder, "many-05"),
    broken("delete_prefix stops at 1,000", k.DeletePrefixStops, "many-06"),
    broken("create_many writes into final names", w.CreateManyInPlace, "many-07"),
    # streams
    broken("upload stops at an empty chunk", v.StopsAtEmptyChunk, "stream-01"),
    broken("no chunk, no value", v.NoChunkNoValue, "stream-02"),
    broken("upload grows under its own name", v.UploadsInPlace, "stream-04 crash-06"),
    broken("download of a missing key is empty", v.DownloadMissingIsEmpty, "stream-05"),
    broken("upload joins all chunks in memory", v.JoinsInMemory, "stream-06"),
    broken("cancelled uploads leave their parts", v.CancelLeavesParts, "stream-09"),
    broken("an upload blocks other calls", v.UploadBlocksAll, "stream-10"),
    broken("leaks dropped downloads", v.LeaksDownloads, "stream-11"),
    # crash
    broken("keeps values in memory until aclose", w.WriteBehind, "crash-02 linear-02 cap-05"),
    broken("delete in two steps", w.TwoStepDelete, "crash-05"),
    broken("no sync at all, claims power", w.NoSync, "crash-08 crash-09 crash-10"),
    broken("never syncs a folder", w.NoFolderSync, "crash-08"),
    broken("server keeps values in memory", WireStore, "crash-11 crash-12", "in memory"),
    broken("named temporary files stay", w.NamedTemporaries, "crash-13"),
    broken("a lock that is broken by age", w.LeaseLock, "crash-14"),
    # faults
    broken("raw network errors", n.RawErrors, "fault-01 fault-02"),
    broken("a lost answer means not done", n.DoubtIsFailure, "fault-03"),
    broken("AlreadyExists in doubt is turned into success", n.DoubtIsSuccess, "fault-04 model-03"),
    broken("5xx is taken for success", n.BusyIsSuccess, "fault-05 fault-07"),
    broken("retries for ever", n.RetriesForEver, "fault-06"),
    broken("one request at a time", n.OneAtATime, "fault-08"),
    broken("takes short bodies", n.ShortBodies, "fault-09"),
    broken("garbage is an empty listing", n.GarbageIsEmpty, "fault-10"),
    broken("waits for an answer for ever", n.WaitsForEver, "fault-11"),
    broken("409 reported as AlreadyExists", n.ConflictIsExists, "fault-12"),
    broken("knows 412 by its body", n.SpellsPrecondition, "fault-13"),
    broken("retries denials", n.RetriesDenials, "fault-14"),
    broken("a missing place is NotFound", v.MissingPlaceIsNotFound, "fault-15"),
    broken("errors of put are logged, not raised", w.LogsErrors, "fault-16"),
    broken("an unreadable value is missing", v.UnreadableIsMissing, "fault-17"),
    broken("no descriptors is a permanent error", v.DescriptorsArePermanent, "fault-18"),
    broken("never reconnects", n.NeverReconnects, "fault-19"),
    # processes, loops, cancellation, closing
    broken("a pickled copy is elsewhere", v.CopyElsewhere, "pickle-01"),
    broken("a pickle is relative to the working folder", v.CopyByWorkingFolder, "pickle-02"),
    broken("error can't be unpickled", v.UnpicklableErrors, "pickle-03"),
    broken("hangs after fork", w.ForkDisabled, "fork-01 fork-02 fork-03"),
    broken("shares one socket over fork", n.SharesSockets, "fork-02 loop-01 loop-02"),
    broken("blocks the loop", v.BlocksTheLoop, "loop-03"),
    broken("a connection for every call", n.Unbounded, "loop-04"),
    broken("hides cancellation", n.HidesCancellation, "cancel-03"),
    broken("leaks on cancellation", v.LeaksOnCancel, "cancel-04"),
    broken("works after aclose", v.WorksAfterClose, "close-01"),
    broken("leaves threads", v.LeavesThreads, "close-02"),
    broken("aclose breaks running calls", v.CloseBreaksCalls, "close-03"),
    broken("leaks a descriptor per instance", v.LeaksPerInstance, "close-04"),
    # errors and declarations
    broken("raises KeyError", v.RaisesKeyError, "error-01"),
    broken("errors without key", v.NamelessErrors, "error-02"),
    broken("secret in repr", v.SecretInRepr, "secret-01"),
    broken("secret in the pickle", n.SecretInPickle, "secret-02"),
    broken("secret in the log", n.LogsSecret, "secret-02"),
    broken("shows the wrong secret", n.ShowsWrongSecret, "secret-03"),
    broken("denied is missing", n.DeniedIsMissing, "secret-03"),
    broken("capabilities are not typed", v.UntypedCapabilities, "cap-01"),
    broken("takes any option", v.TakesAnyOption, "cap-02"),
    broken("threading.Lock only, claims multi_process", w.ThreadLockOnly, "create-06 cap-03"),
    broken("checks, then puts; claims multi_host", n.ChecksThenPuts, "cap-04"),
    broken("keys of 600 bytes", v.ShortKeys, "cap-06"),
    broken("60 ms a get, claims local", v.SlowButLocal, "cap-07"),
    broken("server ignores the condition", WireStore, "cap-08 create-02", "ignores the condition"),
    broken("a thread is never idle", v.BackgroundPoller, "cap-09"),
    broken("heartbeats", n.Heartbeats, "cap-09"),
]  # fmt: skip

RIGHT = {"folder": FolderStore, "wire": WireStore}
