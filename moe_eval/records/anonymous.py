"""Takes out of records what tells of a person or a place: names of hosts and users, paths, process ids, GPU UUIDs."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import msgspec

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

UUID = re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_TOKEN = re.compile(r"gpu\d+")  # of a record that was shared before
_PATH_FIELDS = re.compile(r"(^|_)(path|dir|checkpoint|tokenizer|pretrained|model|folder|file|config)$")
_DIRECTORY = re.compile(r"(^|_)(dir|folder)$")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # OWNER/NAME
_SNAPSHOT = re.compile(r".*models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+")
_URL = re.compile(r"\b([a-z][a-z0-9+.-]*)://[^\s\"'<>(),;]+", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w./~\\-])(?!(?<=:)//)(?:~?[\w.-]*/|[A-Za-z]:[\\/]|\\\\)[^\s\"'`<>(),;:=|\[\]{}]+")
_ABSOLUTE = re.compile(r"~|/|\.\.?/|[A-Za-z]:[\\/]|\\\\")
_HOME = re.compile(r"(?:/home/|/Users/|\\Users\\)([^/\\\s\"',;:]+)")
_PROCESS = re.compile(r"\b(pid|tid|process)([ =:]+)\d+", re.IGNORECASE)
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}:\d+\b")  # with a port: a version has none
# accounts and hosts that many machines have. As words of a report they would be found in any
_COMMON = frozenset(["root", "user", "users", "admin", "nobody", "ubuntu", "runner", "docker", "localhost", "home"])
_SHORTEST = 3  # characters of a name that tells of somebody
Record = TypeVar("Record")

_SHORT, _MOST = 300, 1 << 15  # letters of a text, and texts, that are remembered
_PLAIN = frozenset([int, float, bool, type(None)])  # types of values that tell nothing


@frozen
class Identity:
    """What tells of a machine and who works there.

    Attributes:
        hosts, users: names. `folders`: absolute paths, of the home and of the working folder.
        uuids: of GPUs, in a fixed order.
    """

    hosts: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    uuids: tuple[str, ...] = field(default=())

    def find(self, text: str) -> str | None:
        """The first thing in a text that tells, in words."""
        if UUID.search(text) or any(uuid in text for uuid in self.uuids if len(uuid) > _SHORTEST):
            return "a GPU's UUID"
        if any(folder in text for folder in self.folders):
            return "the home or the working folder"
        places = {"the name of the host": self.hosts, "the name of a user": self.users}
        return next((place for place, names in places.items() if (name := _word(names)) and name.search(text)), None)


def here() -> Identity:
    """Of this machine and whoever runs this."""
    host, home = socket.gethostname(), os.path.expanduser("~")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        user = ""
    folders = {folder for folder in (home, str(Path(home).resolve()), os.getcwd()) if len(Path(folder).parts) > 1}
    return Identity(_telling((host, host.partition(".")[0])), _telling((user, Path(home).name)), tuple(sorted(folders)))


def of_records(records: Iterable[object], identity: Identity) -> Identity:
    """The same, with the users and GPUs that records name."""
    return _of_texts(_texts(records), identity)


def _of_texts(texts: Iterable[tuple[str, str]], identity: Identity) -> Identity:
    """`texts`: with the name of the field of each."""
    users = _telling([*identity.users, *(name for _, text in texts for name in _HOME.findall(text))])
    uuids = tuple(dict.fromkeys(text for key, text in texts if key == "uuid" and not _TOKEN.fullmatch(text)))
    chips = {word.lower() for key, text in texts if key == "device_name" for word in text.split()}
    hosts = tuple(host for host in identity.hosts if host.lower() not in chips)  # a machine may be called h100
    return Identity(hosts, users, identity.folders, uuids)


def of_publication(records: Sequence[object]) -> Identity:
    """What records tell of that are always published: names that records cannot be without stay as they are."""
    texts = _texts(records)
    identity = _of_texts(texts, here())
    names = [word for word in map(_word, (identity.hosts, identity.users)) if word]
    # what a record cannot be without is a word of ours, and none of those is a path
    if any(word.search(text) for _, text in texts if not ("/" in text or "\\" in text) for word in names):
        try:
            for record in records:
                anonymous(record, identity)
        except UsageError:
            return replace(identity, hosts=(), users=())
    return identity


def content(document: object, identity: Identity) -> object:
    """The same of JSON."""
    return _clean(document, "", _cleaned(identity))


def without_names(text: str, identity: Identity) -> str:
    """A text of another format, such as HTML, without names and folders of this machine and UUIDs."""
    for folder in sorted(identity.folders, key=len, reverse=True):
        text = text.replace(folder, "[folder]")
    for token, names in (("[host]", identity.hosts), ("[user]", identity.users)):
        word = _word(names)
        text = word.sub(token, text) if word else text
    return UUID.sub("[gpu]", text)


def anonymous(record: Record, identity: Identity) -> Record:
    """A copy in which tokens, or the last name of a path, stand for what tells.

    Raises:
        UsageError: a name is also a word that records cannot be without.
    """
    content = _clean(msgspec.to_builtins(record), "", _cleaned(identity))
    try:
        return msgspec.convert(content, type(record), str_keys=True)
    except msgspec.ValidationError:
        names = " or ".join([*identity.users, *identity.hosts])
        raise UsageError(
            f"A record needs the word {names}, which is also the name of a user or host. Export under another name."
        ) from None


def text_of(text: str, identity: Identity, key: str = "") -> str:
    """One text without what tells. `key` is the name of its field."""
    return _cleaned(identity)[key, text]


def _text(text: str, identity: Identity, key: str) -> str:
    for index, uuid in enumerate(identity.uuids):
        text = text.replace(uuid, f"gpu{index}")
    if _PATH_FIELDS.search(key) and "\n" not in text:
        text = _last_name(text, is_folder=bool(_DIRECTORY.search(key)))
    text = _URL.sub(r"\1://[host]", UUID.sub("[gpu]", text))
    text = _PATH.sub(lambda match: _last_name(match[0]) if _ABSOLUTE.match(match[0]) else match[0], text)
    text = _ADDRESS.sub("[host]", _PROCESS.sub(r"\1\2[pid]", text))
    for token, names in (("[host]", identity.hosts), ("[user]", identity.users)):
        word = _word(names)
        text = word.sub(token, text) if word else text
    for folder in sorted(identity.folders, key=len, reverse=True):  # in the middle of something that is no path
        text = text.replace(folder, "[folder]")
    return text


class _Cleaned(dict[tuple[str, str], str]):
    """Texts without what tells, by the name of their field and the text: names come again in every shape of an arm."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def __missing__(self, place: tuple[str, str]) -> str:
        key, text = place
        cleaned = _text(text, self._identity, key)
        if len(text) <= _SHORT and len(self) < _MOST:
            self[place] = cleaned
        return cleaned


_cleaned = lru_cache(maxsize=4)(_Cleaned)


def _telling(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        sorted({name for name in names if len(name) >= _SHORTEST and name.lower() not in _COMMON}, key=len)[::-1]
    )


@lru_cache
def _word(names: tuple[str, ...]) -> re.Pattern[str] | None:
    if not names:
        return None
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, names))})(?![A-Za-z0-9])", re.IGNORECASE)


def _last_name(path: str, *, is_folder: bool = False) -> str:
    """What names a checkpoint or a file without its place. A name on the hub stays."""
    plain = path.replace("\\", "/").rstrip("/")
    snapshot = _SNAPSHOT.fullmatch(plain)
    if snapshot:
        return f"{snapshot['owner']}/{snapshot['name']}"
    if _HUB.fullmatch(plain) and not is_folder:
        return path
    if _HOME.fullmatch(plain) or plain in ("/root", "~"):
        return "[home]"
    return plain.rpartition("/")[2] or path[:1]


def _texts(records: Iterable[object]) -> Collection[tuple[str, str]]:
    """Every text once with the name of its field, in order."""
    texts: dict[tuple[str, str], None] = {}
    for record in records:
        _gather(msgspec.to_builtins(record), "", texts)
    return texts


def _gather(value: object, key: str, texts: dict[tuple[str, str], None]) -> None:
    if isinstance(value, str):
        texts[key, value] = None
    elif isinstance(value, dict):
        for name, inner in value.items():
            if type(inner) not in _PLAIN:
                _gather(inner, str(name), texts)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            if type(inner) not in _PLAIN:
                _gather(inner, key, texts)


def _clean(value: object, key: str, texts: _Cleaned) -> object:
    if isinstance(value, str):
        return texts[key, value]
    if isinstance(value, dict):
        return {
            texts["", name] if isinstance(name, str) else name: inner
            if type(inner) in _PLAIN
            else _clean(inner, str(name), texts)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [inner if type(inner) in _PLAIN else _clean(inner, key, texts) for inner in value]
    return value
