"""Values: the one door between Python objects and stored bytes.

Owns the choice of serializer, the trust level and the errors that name task, path and remedy. Imports no
serializer by name and nothing heavy; what a value needs is imported when such a value comes.

Choice by type: the first serializer in ``order`` that accepts the object keeps it. Loading goes by the id in
the envelope, never by guessing.

Trust says what may be loaded. ``data``: only serializers that run no code, whatever the bytes say.
``signed``: only what carries a valid signature for its place. ``all``: anything, so whoever can write to the
store can run code here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from perdure import registry
from perdure.envelope import NO_TOKEN, pack, size_of, unpack
from perdure.errors import DecodeError, EncodeError, PluginError
from perdure.keyring import Keyring, place
from perdure.references import COLLECTOR, RESTORED, Collector
from perdure.serializer import (
    DEFAULT_LIMITS,
    AdaptedCodec,
    AdaptedSerializer,
    Buffer,
    Codec,
    Limits,
    Serializer,
)
from perdure.value_path import find_refused

Trust: TypeAlias = Literal["data", "signed", "all"]
TRUST_LEVELS: Final = ("data", "signed", "all")
DEFAULT_ORDER: Final = ("data", "arrow", "pickle")


@dataclass(frozen=True, slots=True)
class Dumped:
    """A stored form: ``buffers`` to be written one after the other, ``size`` bytes in all.

    ``refs`` are the distinct ObjectRefs inside, by the index that the bytes name. The buffers may be views of
    the value: they are valid while it is not changed.
    """

    buffers: list[Buffer]
    size: int
    refs: list[Any]
    serializer: str

    def join(self) -> bytes:
        """All bytes in one object."""
        return b"".join(self.buffers)


class Values:
    """Turns values into stored bytes and back. Picklable, and used by many threads at once.

    ``order``: serializers to try, by name or instance. ``codecs``: names or instances, applied in order
    (compress, then encrypt). ``keys``: sign what is dumped if it has a signing key (unless ``sign`` is false), and
    give codecs their keys.
    """

    def __init__(
        self,
        order: Sequence[str | Serializer] = DEFAULT_ORDER,
        *,
        trust: Trust = "all",
        codecs: Sequence[str | Codec] = (),
        keys: Keyring | None = None,
        limits: Limits = DEFAULT_LIMITS,
        sign: bool = True,
    ) -> None:
        if trust not in TRUST_LEVELS:
            raise ValueError(f"trust must be one of {', '.join(TRUST_LEVELS)}, not {trust!r}")
        if trust == "signed" and keys is None:
            raise ValueError("trust='signed' needs keys=Keyring.load(...), with the key that signs or its public part")
        if not order:
            raise ValueError("order names no serializer")
        self.trust = trust
        self.limits = limits
        self.keys = keys
        self._sign = sign
        self._signs = sign and keys is not None and keys.writer("sign") is not None
        self._given = (tuple(order), tuple(codecs))
        self._serializers: dict[str, Serializer] = {s.id: s for s in order if not isinstance(s, str)}
        self._order = tuple(s if isinstance(s, str) else s.id for s in order)
        self._codecs: dict[str, Codec] = {c.id: c for c in codecs if not isinstance(c, str)}
        self._chain = tuple(self.codec(c) if isinstance(c, str) else c for c in codecs)

    @property
    def order(self) -> tuple[str, ...]:
        """Ids of the serializers that are tried, in order."""
        return self._order

    def __reduce__(self) -> tuple[Any, ...]:
        order, codecs = self._given
        return _rebuild, (order, self.trust, codecs, self.keys, self.limits, self._sign)

    def dump(
        self,
        value: object,
        *,
        token: bytes = NO_TOKEN,
        where: str = "",
        root: str = "result",
        serializer: str | None = None,
        context: tuple[str, str] | None = None,
    ) -> Dumped:
        """The stored form of a value.

        ``token``: the writer token, zeros where the key is named by content. ``where`` names the task and
        ``root`` the value, for errors. ``serializer``: this one only.

        Raises:
            EncodeError: no serializer keeps it; the text names the path, the type and the serializers tried.
            PluginError: an unknown or broken serializer was asked for.
        """
        collector = Collector()
        reset = COLLECTOR.set(collector)
        try:
            for name in self._order if serializer is None else (serializer,):
                chosen = self._serializers.get(name) or self.serializer(name)
                buffers = chosen.attempt(value)
                if buffers is not None:
                    break
                collector.clear()
            else:
                raise self._refused(value, where, root, serializer)
        except EncodeError as error:
            if error.path is not None:
                raise
            raise self._refused(value, where, root, serializer) from (error.__cause__ or error)
        finally:
            COLLECTOR.reset(reset)
        packed = pack(
            buffers,
            serializer=chosen.id,
            serializer_version=chosen.version,
            token=token,
            codecs=self._chain,
            context=b"" if context is None else place(*context),
            sign=self._signer(context) if self._signs else None,
        )
        size = len(packed[0]) if len(packed) == 1 else size_of(packed)
        return Dumped(packed, size, collector.refs, chosen.id)

    def load(
        self,
        data: Buffer,
        *,
        refs: Sequence[Any] = (),
        where: str = "the stored value",
        context: tuple[str, str] | None = None,
    ) -> Any:
        """The value in these bytes. Large arrays and tables are views of ``data``.

        ``refs`` are the ObjectRefs that it names by index; ``where`` names the value, for errors; ``context``
        is that of ``dump``.

        Raises:
            CorruptedError, FormatError: as ``envelope.unpack``.
            DecodeError: not allowed by the trust level, no such serializer, or bytes that are no value.
        """
        bound = b"" if context is None else place(*context)
        envelope = unpack(
            data,
            limits=self.limits,
            key=where,
            codec=self._codec_for_loading,
            context=bound,
            verify=self._verifier(context, where) if self.trust == "signed" else None,
        )
        name = envelope.serializer
        chosen = self._serializers.get(name) or self._for_loading(name, where)
        if chosen.runs_code and self.trust == "data":
            raise DecodeError(
                f"{where} was stored by the serializer {name!r}, which runs code when it is loaded; "
                "trust='data' does not allow it. Set trust='all' if everyone who can write to this store may "
                "run code here, or trust='signed' with a key."
            )
        if envelope.serializer_version > chosen.version:
            raise DecodeError(
                f"{where} was stored by version {envelope.serializer_version} of the serializer {name!r}; "
                f"installed is version {chosen.version}. Upgrade the distribution that offers it."
            )
        reset = RESTORED.set(refs)
        try:
            return chosen.load(envelope.buffers, self.limits)
        except DecodeError as error:
            if where in str(error):
                raise
            raise DecodeError(f"{where}: {error}") from (error.__cause__ or error)
        finally:
            RESTORED.reset(reset)

    def dumps(self, value: object, **options: Any) -> bytes:
        """``dump`` as one bytes object. EncodeError if the value holds ObjectRefs, which bytes can't
        carry.
        """
        dumped = self.dump(value, **options)
        if dumped.refs:
            where = options.get("where") or "the value"
            raise EncodeError(
                f"{where} holds {len(dumped.refs)} ObjectRefs, which bytes alone can't carry. Pass them as arguments "
                "instead of keeping them in a closure, a global or a default."
            )
        return dumped.join()

    def loads(self, data: Buffer, **options: Any) -> Any:
        """``load`` of what ``dumps`` gave."""
        return self.load(data, **options)

    def serializer(self, name: str) -> Serializer:
        """The serializer of this name, imported at its first use. PluginError: there is none, or it is
        broken.
        """
        found = self._serializers.get(name)
        if found is None:
            made: Any = registry.load(registry.SERIALIZERS, name)
            made = made() if isinstance(made, type) else made
            found = self._serializers[name] = made if isinstance(made, Serializer) else AdaptedSerializer(made)
        return found

    def codec(self, name: str) -> Codec:
        """The codec of this name. PluginError: there is none, or it is broken."""
        found = self._codecs.get(name)
        if found is None:
            made: Any = registry.load(registry.CODECS, name)
            if isinstance(made, type):
                made = made(self.keys) if getattr(made, "keyed", False) else made()
            found = self._codecs[name] = made if isinstance(made, Codec) else AdaptedCodec(made)
        return found

    def _signer(self, context: tuple[str, str] | None) -> Callable[[bytes], bytes] | None:
        assert self.keys is not None
        if context is None:
            raise ValueError("a value is signed for its place: give context=(workflow_id, key)")
        return self.keys.signer(place(*context))

    def _verifier(self, context: tuple[str, str] | None, where: str) -> Callable[[bytes, bytes], None]:
        assert self.keys is not None
        if context is None:
            raise ValueError("trust='signed' loads a value for its place: give context=(workflow_id, key)")
        return self.keys.verifier(place(*context), where)

    def _codec_for_loading(self, name: str) -> Codec:
        try:
            return self.codec(name)
        except PluginError as error:
            raise DecodeError(f"the value was stored with the codec {name!r}, which can't be used: {error}") from error

    def _for_loading(self, name: str, where: str) -> Serializer:
        try:
            return self.serializer(name)
        except PluginError as error:
            raise DecodeError(
                f"{where} was stored by the serializer {name!r:.80}, which can't be used here: {error}. "
                "Install the distribution that offers it."
            ) from error

    def _refused(self, value: object, where: str, root: str, serializer: str | None) -> EncodeError:
        names = self._order if serializer is None else (serializer,)
        path, found = find_refused(value, root, lambda part: self._storable(part, names))
        kind = f"{type(found).__module__}.{type(found).__qualname__}".removeprefix("builtins.")
        reason = self._reason(found, names)
        hint = (
            "Return data instead (numbers, strings, lists, dicts, arrays), leave this part out of what is "
            "returned, or install a serializer that keeps this type."
        )
        if "pickle" not in names:
            hint = f"The serializer 'pickle' was not allowed here. {hint}"
        return EncodeError(
            f"{where + ': ' if where else ''}{path} is a {kind}, which can't be stored "
            f"(tried: {', '.join(names)}).{reason} {hint}",
            path=path,
        )

    def _reason(self, part: object, names: Sequence[str]) -> str:
        # The last in order is the one that keeps most.
        last = self.serializer(names[-1])
        reset = COLLECTOR.set(Collector())
        try:
            last.dump(part)
        except EncodeError as error:
            return f" {error!s:.300}."
        except Exception:  # not even an EncodeError: the type and path must do
            return ""
        finally:
            COLLECTOR.reset(reset)
        return ""

    def _storable(self, part: object, names: Sequence[str]) -> bool:
        reset = COLLECTOR.set(Collector())
        try:
            return any(self.serializer(name).attempt(part) is not None for name in names)
        except EncodeError:
            return False
        finally:
            COLLECTOR.reset(reset)


def _rebuild(order: Any, trust: Trust, codecs: Any, keys: Keyring | None, limits: Limits, sign: bool = True) -> Values:
    return Values(order, trust=trust, codecs=codecs, keys=keys, limits=limits, sign=sign)
