"""People who sign in to the control room with a Label Studio account: their sessions and roles."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sa
from cachetools import LRUCache

from ml_backend.core.errors import LabelStudioError
from ml_backend.core.timestamps import ensure_utc
from ml_backend.db.storage import Storage
from ml_backend.db.tables import people, sessions
from ml_backend.label_studio.client import LabelStudioClient, TokenRefused
from ml_backend.label_studio.listing import TIMEOUT_S
from ml_backend.server.access import LIFETIME, ROLES, Role
from ml_backend.server.problems import SignedOut

#: Time for which the projects that Label Studio shows to somebody are cached.
FRESH = timedelta(seconds=30)
_MAX_CACHED = 1000
#: Browsers in which one person is signed in; the next one ends the oldest session.
MAX_SESSIONS = 10


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in.

    Attributes:
        name: the person's e-mail address in Label Studio.
        token: the person's token for Label Studio.
    """

    id: str
    name: str
    role: Role
    token: str


class People:
    """Sessions and roles in the database. Thread-safe.

    A session's token is stored encrypted with its cookie, which only the browser has: a copy of the database gives
    nobody access to Label Studio.

    Args:
        url: of Label Studio.
    """

    def __init__(self, url: str, storage: Storage) -> None:
        self._url, self._storage = url, storage
        self._visible: LRUCache[str, tuple[datetime, frozenset[int]]] = LRUCache(_MAX_CACHED)
        self._lock = threading.Lock()

    def sign_in(self, token: str) -> tuple[Session, str]:
        """Ask Label Studio whose token this is, and return a session of that person with its cookie.

        Raises:
            LabelStudioError: the token is refused, or Label Studio does not answer.
        """
        name, is_owner = LabelStudioClient(self._url, token, TIMEOUT_S, retries=0).account()
        name = name.lower()  # as an admin may have written it
        default, now, cookie = "admin" if is_owner else "annotator", datetime.now(timezone.utc), secrets.token_hex(32)
        values = {"default_role": default, "signed_in_at": now}
        self._storage.upsert(people, {"name": name}, values, {"role": "", "given_by": ""})
        row = {"id": _digest(cookie), "name": name, "token": _crypt(token.encode(), cookie)}
        with self._storage.write() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.expires_at < now))
            connection.execute(sa.insert(sessions).values(row | {"expires_at": now + LIFETIME}))
            theirs = sa.select(sessions.c.id).where(sessions.c.name == name)
            old = theirs.order_by(sessions.c.expires_at.desc(), sessions.c.id).offset(MAX_SESSIONS).limit(1000)
            ended = connection.scalars(old).all()
            connection.execute(sa.delete(sessions).where(sessions.c.id.in_(ended)))
        return Session(row["id"], name, self._role(name), token), cookie

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie, unless it has ended."""
        query = sa.select(sessions).where(sessions.c.id == _digest(cookie))
        with self._storage.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None or ensure_utc(row["expires_at"]) < datetime.now(timezone.utc):
            return None
        return Session(row["id"], row["name"], self._role(row["name"]), _crypt(row["token"], cookie).decode())

    def leave(self, cookie: str) -> None:
        """End the session of a cookie, if there is one."""
        self.sign_out(_digest(cookie))

    def sign_out(self, session_id: str) -> None:
        """End a session."""
        with self._storage.write() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.id == session_id))

    def projects(self, session: Session) -> frozenset[int]:
        """Return the projects that Label Studio shows to the person. While it does not answer, those it last showed.

        Raises:
            SignedOut: Label Studio refuses the token, so the session has ended.
            LabelStudioError: it does not answer, and has not been asked before.
        """
        now = datetime.now(timezone.utc)
        with self._lock:
            known = self._visible.get(session.id)
        if known and now - known[0] < FRESH:
            return known[1]
        try:
            found = LabelStudioClient(self._url, session.token, TIMEOUT_S, retries=0).project_ids()
        except TokenRefused as error:
            self.sign_out(session.id)
            raise SignedOut("Label Studio refuses the token that you signed in with.", "Sign in again.") from error
        except LabelStudioError:
            if known is None:
                raise
            found = known[1]  # not asked again at once: each request would wait
        with self._lock:
            self._visible[session.id] = now, found
        return found

    def _role(self, name: str) -> Role:
        with self._storage.read() as connection:
            row = connection.execute(sa.select(people).where(people.c.name == name)).mappings().first()
        return _effective(row) if row else "viewer"

    def all(self) -> list[dict[str, Any]]:
        """Return everybody who has signed in or been given a role, by name."""
        with self._storage.read() as connection:
            rows = connection.execute(sa.select(people).order_by(people.c.name)).mappings().all()
        return [
            {
                "name": row["name"],
                "role": _effective(row),
                "is_default": not row["role"],
                "given_by": row["given_by"] or None,
                "signed_in_at": ensure_utc(row["signed_in_at"]) if row["signed_in_at"] else None,
            }
            for row in rows
        ]

    def give(self, name: str, role: Role | None, by: str) -> None:
        """Give a person a role, also before the first sign-in; ``None``: the default one. It counts at once."""
        values = {"role": role or "", "given_by": by if role else ""}
        self._storage.upsert(people, {"name": name}, values, {"default_role": "annotator", "signed_in_at": None})


def _effective(row: Mapping[Any, Any]) -> Role:
    role = row["role"] or row["default_role"]
    return role if role in ROLES else "viewer"


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()


def _crypt(text: bytes, cookie: str) -> bytes:
    """Encrypt or decrypt with a key stream that is used once: each cookie is random, and encrypts one token."""
    stream = hashlib.shake_256(b"token of a session " + cookie.encode()).digest(len(text))
    return bytes(a ^ b for a, b in zip(text, stream, strict=True))
