"""Large pages for large arrays on Linux: a train step on a CPU runs about 1.3 times as fast with them (docs/speed.md).

XLA asks for its scratch memory anew at each step, hundreds of megabytes, and the kernel hands them out in 4 KiB pages,
each with a fault. glibc (2.35 and later) asks for 2 MiB pages instead if a tunable is in the environment when a process
starts, so the command line starts itself once more with that set.
"""

import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
SETTING = "glibc.malloc.hugetlb=1"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Replaces this process by the same command with large pages; returns where that is not needed or not possible.

    The process keeps its number, its standard streams and its arguments. A user's own setting of the tunable wins.
    """
    if not sys.platform.startswith("linux") or "glibc.malloc.hugetlb" in os.environ.get(
        TUNABLES, ""
    ):
        return
    try:
        offered = "[madvise]" in KERNEL.read_text()
    except OSError:
        return
    if offered:
        setting = ":".join(filter(None, [os.environ.get(TUNABLES), SETTING]))
        os.execve(
            sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {TUNABLES: setting}
        )
