"""A file system that fails: `fsspec+flaky:///folder` is that folder, as an object store would be.

The file `failing` in PREFSWEEP_TEST_STORAGE says how often every tenth path fails, in each process,
before it can be opened; `always` fails all that is opened for writing.
"""

import errno
import os
import zlib
from collections import Counter
from pathlib import Path
from typing import ClassVar

from fsspec.implementations.local import LocalFileSystem


class FlakyFileSystem(LocalFileSystem):
    """A local folder behind fsspec, so that pyarrow and the store see no local file system."""

    protocol = ("flaky",)
    failed: ClassVar[Counter] = Counter()

    def __init__(self, **options):
        super().__init__(**(options | {"auto_mkdir": True}))  # an object store has no folders

    def _open(self, path, mode="rb", block_size=None, **kwargs):
        control = Path(os.environ["PREFSWEEP_TEST_STORAGE"])
        failing = (control / "failing").read_text()
        if failing == "always" and "r" not in mode:
            self.fail(path)
        if failing.isdigit() and zlib.crc32(str(path).encode()) % 10 == 0:
            self.failed[path, mode] += 1
            if self.failed[path, mode] <= int(failing):
                (control / "has-failed").touch()
                self.fail(path)
        return super()._open(path, mode=mode, block_size=block_size, **kwargs)

    def fail(self, path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
