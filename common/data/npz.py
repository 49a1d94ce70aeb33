"""An npz file that is read once: its arrays block by block, CRC-32 and SHA-256 from the same bytes."""

import contextlib
import hashlib
import io
import pathlib
import tokenize
import zipfile
from collections.abc import Collection, Iterator

from common.data.check import BLOCK_BYTES, Header
from common.errors import UserError, describe_os_error
from common.files import DAMAGE as DAMAGE_OF_ARCHIVES
from common.files import check_archive

import numpy as np

DAMAGE = (*DAMAGE_OF_ARCHIVES, SyntaxError, tokenize.TokenError)  # the latter two of headers
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Npz:
    """An open file. Use `opened`.

    Attributes:
        headers: of its arrays, by name.
    """

    def __init__(self, path: pathlib.Path, file: "_Hashed"):
        self.path, self._file = path, file
        with _naming_damage(path):
            self._archive = zipfile.ZipFile(self._file)
            self.headers = {}
            for info in self._archive.infolist():
                if info.filename.endswith(".npy"):
                    with self._archive.open(info) as member:
                        self.headers[info.filename.removesuffix(".npy")], _ = _read_header(info, member)

    def in_order(self, names: Collection[str]) -> list[str]:
        """As they lie in the file, which is read from front to back then."""
        return sorted(names, key=lambda name: self._archive.getinfo(f"{name}.npy").header_offset)

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """An array, some rows at a time: the number of the first of them, and the rows.

        Raises:
            UserError: it is damaged. What came before that may be, too.
        """
        with _naming_damage(self.path):
            info = self._archive.getinfo(f"{name}.npy")
            self._file.hash_up_to(info.header_offset)
            with self._archive.open(info) as member:
                header, is_fortran = _read_header(info, member)
                if is_fortran or not header.shape:  # in one piece
                    values = np.frombuffer(_read(member, header.num_bytes), header.dtype)
                    yield 0, values.reshape(header.shape[::-1]).T
                else:
                    for first, end in header.blocks():
                        values = np.frombuffer(_read(member, (end - first) * header.row_bytes), header.dtype)
                        yield first, values.reshape(end - first, *header.shape[1:])
                if member.read(1):  # which makes zipfile compare the CRC, too
                    raise EOFError(f"{name} is longer than its header says")

    def sha256(self) -> str:
        """Of the file, for which what was not read yet is read now. Raises `UserError` if it cannot be."""
        with _naming_damage(self.path):
            return self._file.sha256()


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Npz]:
    """Open a file for as long as its arrays are read and checked.

    Raises:
        UserError: it is damaged; that comes first, for what is damaged may hold anything.
    """
    with _naming_damage(path):
        file = _Hashed(path)
    with file:
        try:
            yield Npz(path, file)
        except UserError:
            with _naming_damage(path):
                check_archive(path)
            raise


class _Hashed(io.FileIO):
    """A file whose SHA-256 comes with reading it from front to back."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        self._sha256, self._hashed = hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        start, data = self.tell(), super().read(size)
        if start <= self._hashed < start + len(data):
            self._sha256.update(memoryview(data)[self._hashed - start :])
            self._hashed = start + len(data)
        return data

    def hash_up_to(self, end: int) -> None:
        """Read what was left out before `end`."""
        self.seek(self._hashed)
        while self._hashed < end and self.read(min(BLOCK_BYTES, end - self._hashed)):
            pass

    def sha256(self) -> str:
        """Of all of it."""
        self.seek(self._hashed)
        while self.read(BLOCK_BYTES):
            pass
        return self._sha256.hexdigest()


@contextlib.contextmanager
def _naming_damage(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {describe_os_error(error)}") from error
    except DAMAGE as error:
        raise UserError(f"{path}: damaged or not an npz file ({error})") from error


def _read(member: zipfile.ZipExtFile, num_bytes: int) -> bytes:
    """So many, and no fewer."""
    data = member.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError(f"{member.name} ends early")
    return data


def _read_header(info: zipfile.ZipInfo, member: zipfile.ZipExtFile) -> tuple[Header, bool]:
    """What comes before the numbers of an array, and whether its columns lie one after the other (Fortran's order)."""
    version = np.lib.format.read_magic(member)
    if version not in READ_HEADER:
        raise ValueError(f"{info.filename}: version {version} of the format")
    shape, is_fortran, dtype = READ_HEADER[version](member)
    header = Header(shape, dtype)
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python's objects")
    if header.num_bytes != info.file_size - member.tell():
        raise ValueError(f"{info.filename}: its header says shape {shape}, which is not its size")
    return header, is_fortran
