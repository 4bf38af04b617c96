"""Everything that a reader finds in the files of a unit; what is damaged contributes nothing."""

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from io import BufferedReader

from data.files import READ_SIZE, DamagedFile, is_documentation, open_input, open_range
from data.medline_files import check_md5
from data.readers import find_format
from data.readers.interface import Format, InputFile, Item, ReadSettings
from data.summary import Summary
from data.units import Unit, UnitFile, is_archive

END_MARK = 1024
"""Zero bytes at the end of a tar archive."""


class Restart(Exception):
    """A file turned out damaged after some of its documents were taken: the unit starts again without it."""


def unit_items(unit: Unit, settings: ReadSettings, summary: Summary) -> Iterator[Item]:
    """Everything that the readers find in a unit. Damage is noted in `summary.damaged`; raises Restart when items must
    be taken back."""
    for file in unit.files:
        if file.name in summary.damaged:
            continue
        taken = False
        try:
            for item in _file_items(unit, file, settings, summary):
                taken = True
                yield item
        except DamagedFile as error:
            summary.damaged[file.name] = error.reason
            if taken:
                raise Restart from error


def _file_items(unit: Unit, file: UnitFile, settings: ReadSettings, summary: Summary) -> Iterator[Item]:
    check_md5(file.path, file.name)
    if is_archive(file.name):
        yield from _archive_items(unit, file, settings, summary)
        return
    if unit.end is None:
        stream, offset = open_input(file.path, file.name), 0
    else:
        stream, offset = open_range(file.path, file.name, unit.start, unit.end)
    form = find_format(unit.kind)
    opened = InputFile(stream, file.name, unit.source_name, offset, summary.notes, settings)
    companion = form.companion(file.path) if form.companion else None
    with ExitStack() as stack:
        stack.enter_context(stream)
        if companion:
            other = stack.enter_context(open_input(companion, companion.name))
            opened.companion = InputFile(other, companion.name, unit.source_name, 0, summary.notes, settings)
        yield from _read(form, opened)


def _read(form: Format, file: InputFile) -> Iterator[Item]:
    """What the reader finds. A value that it did not foresee is damage of this file, not the end of the run."""
    try:
        yield from form.read(file)
    except DamagedFile:
        raise
    except ValueError as error:
        raise DamagedFile(file.name, f"cannot be read ({error})") from error


class _ArchiveStream:
    """The bytes of an archive as tarfile asks for them, and where the last one lies that is not zero."""

    def __init__(self, stream: BufferedReader):
        self.stream = stream
        self.position = 0
        self.last = 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        written = len(data.rstrip(b"\0"))
        if written:
            self.last = self.position + written
        self.position += len(data)
        return data

    def check_end(self, name: str, offset: int) -> None:
        """tarfile ends without a word at a header that it cannot read: DamagedFile unless only zeros follow `offset`,
        where it ended, and there are as many as an archive has. Reading on also checks the compression's sum."""
        while self.read(READ_SIZE):
            pass
        if self.last > offset:
            raise DamagedFile(name, "broken archive: a header in it cannot be read")
        if self.position - self.last < END_MARK:
            raise DamagedFile(name, "broken archive: it ends without its end mark, so that members may be missing")


def _archive_items(unit: Unit, file: UnitFile, settings: ReadSettings, summary: Summary) -> Iterator[Item]:
    """The readable members of a tar archive, in its order, in one pass. A damaged member is noted, the others are
    read."""
    form = find_format(unit.kind)
    with open_input(file.path, file.name) as stream:
        source = _ArchiveStream(stream)
        try:
            with tarfile.open(fileobj=source, mode="r|") as archive:
                for member in archive:
                    if not member.isfile() or is_documentation(member.name.rpartition("/")[2]):
                        continue
                    if form.pattern.fullmatch(member.name.lower()) is None:
                        continue
                    name = f"{file.name}/{member.name}"
                    if name not in summary.damaged:
                        content = archive.extractfile(member)
                        opened = InputFile(content, name, unit.source_name, 0, summary.notes, settings)
                        yield from _member_items(form, opened, summary)
                source.check_end(file.name, archive.offset)
        except tarfile.TarError as error:
            raise DamagedFile(file.name, f"broken archive ({error})") from error


def _member_items(form: Format, member: InputFile, summary: Summary) -> Iterator[Item]:
    taken = False
    try:
        for item in _read(form, member):
            taken = True
            yield item
    except DamagedFile as error:
        if error.name != member.name:  # the archive itself
            raise
        summary.damaged[member.name] = error.reason
        if taken:
            raise Restart from error
