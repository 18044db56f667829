"""What the mount of a folder means for names: network filesystems cache them.

Owns the judgement only, from the text of ``/proc/self/mountinfo``; changes nothing.
"""

from __future__ import annotations

import os
import re

_MOUNTS = "/proc/self/mountinfo"
_OCTAL = re.compile(r"\\([0-7]{3})")


def lagging(folder: str, table: str | None = None) -> str:
    """How the folder is mounted, if names that another host has made or removed may show late there; else "".

    NFS asks the server each time only under ``noac`` (or ``actimeo=0``) and ``lookupcache=none``.
    """
    if table is None:
        try:
            with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
                table = file.read()
        except OSError:
            return ""  # not Linux
    folder, found, options = os.path.realpath(folder), "", ""
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 6 or len(kinds) < 3:
            continue
        point = _OCTAL.sub(lambda m: chr(int(m[1], 8)), fields[4])
        inside = folder == point or folder.startswith(point.rstrip(os.sep) + os.sep)
        if inside and len(point) >= len(found):
            found = point
            options = f"{fields[5]},{kinds[2]}" if kinds[0] in ("nfs", "nfs4") else ""
    said = set(options.split(","))
    if not options or ("lookupcache=none" in said and said & {"noac", "actimeo=0"}):
        return ""
    return f"{found} is NFS, mounted without noac,lookupcache=none"
