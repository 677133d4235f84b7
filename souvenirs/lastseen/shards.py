"""The sorted sets in Redis: members are users, scores are when they were last seen.

A shard is one key, so that a Cluster spreads them; the checksum of a user's key determines their
shard. A shard also has marks, whose scores are below all times: the mark WHOLE says that the shard
has missed nothing since the time in its score, as long as the server on which it was set keeps
running. A server that lost the shard, was restarted, or is a replica that took over (which may lack
the last moments) has no such mark with its run id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from zlib import crc32

from redis.crc import key_slot

from souvenirs.lastseen.clients import group_by_node
from souvenirs.lastseen.pending import Move
from souvenirs.periods import EARLIEST

SHARDS = 16  # not a setting: after a change, all users would be counted twice
BELOW = -(10**15)  # added to the scores of marks
# No user has such a key: it is not valid UTF-8
WHOLE = b"\xffwhole:"
RESYNC = b"\xffresync:"

# Replace a time after `latest`, which ZADD GT would keep
REPLACE = """
local seen = redis.call('ZSCORE', KEYS[1], ARGV[1])
if seen and tonumber(seen) > tonumber(ARGV[3]) then
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
end
"""
# Replace one mark with another, if it is still there
FINISH = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
    redis.call('ZADD', KEYS[1], ARGV[2], ARGV[3])
end
"""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts from all shards.

    since, newest: as in LastSeenCounts.
    is_whole: whether all shards are whole.
    whole_since: the time from which on the marked shards have missed nothing.
    """

    since: Mapping[float, int]
    newest: int | None
    is_whole: bool
    whole_since: float


class Shards:
    """The shards of a site. Methods raise redis-py's errors, and are thread-safe.

    make_client: called before the first command, and again after `reconnect`.
    """

    def __init__(self, make_client: Callable[[], Any], prefix: str) -> None:
        self._make_client = make_client
        self._client: Any = None
        self.keys = spread_keys(prefix)
        self.lock_key = f"{prefix}resync"
        self.check_key = f"{prefix}check"

    @property
    def client(self) -> Any:
        client = self._client
        if client is None:
            client = self._client = self._make_client()
        return client

    def reconnect(self) -> None:
        """Make the next call discover the servers again."""
        self._client = None

    def after_fork(self) -> None:
        # Keep a reference: closing the client may wait for a lock held by a thread of the parent
        self._client_of_parent = self._client
        self.reconnect()

    def server_of(self, key: str) -> Any:
        # Not a Cluster's client: some of its versions retry for seconds if a node is down
        ((server, _),) = group_by_node(self.client, [key])
        return server

    def key_of(self, member: bytes) -> str:
        return self.keys[crc32(member) % SHARDS]

    # Users

    def get(self, member: bytes) -> int | None:
        key = self.key_of(member)
        seen = self.server_of(key).zscore(key, member)
        return None if seen is None else int(seen)

    def get_many(self, members: Iterable[bytes]) -> dict[bytes, int]:
        """Return members' scores, in one round trip per server. Unknown members are left out."""
        of_key: dict[str, list[bytes]] = {}
        for member in members:
            of_key.setdefault(self.key_of(member), []).append(member)
        found: dict[bytes, int] = {}
        for server, keys in group_by_node(self.client, of_key):
            pipe: Any = server.pipeline(transaction=False)
            for key in keys:
                pipe.zmscore(key, of_key[key])
            for key, scores in zip(keys, pipe.execute()):
                times = zip(of_key[key], scores)
                found.update((member, int(seen)) for member, seen in times if seen is not None)
        return found

    def write(self, moves: Mapping[bytes, Move], latest: float) -> dict[bytes, Move]:
        """Write moves in one round trip per server, and more for users whose time did not move: if
        it is after `latest`, it is replaced.

        Return the moves that have to be confirmed first: those of users who are not in the shard,
        or were deleted.
        """
        unconfirmed = {
            member: move
            for member, move in moves.items()
            if not move.confirmed and (move.seen is None or move.key_reused)
        }
        of_key: dict[str, dict[bytes, Move]] = {}
        for member, move in moves.items():
            if member not in unconfirmed:
                of_key.setdefault(self.key_of(member), {})[member] = move
        for server, keys in group_by_node(self.client, of_key):
            pipe: Any = server.pipeline(transaction=False)
            sent: list[tuple[str, list[bytes]]] = []
            for key in keys:
                of = of_key[key]
                gone = [
                    member for member, move in of.items() if move.seen is None or move.key_reused
                ]
                if gone:
                    pipe.zrem(key, *gone)
                    sent.append((key, []))
                for confirmed in (True, False):
                    times = {
                        member: move.seen
                        for member, move in of.items()
                        if move.seen is not None and move.confirmed == confirmed
                    }
                    if times:
                        pipe.zadd(key, times, gt=True, xx=not confirmed, ch=True)
                        sent.append((key, list(times)))
            moved = pipe.execute()
            behind = [each for each, number in zip(sent, moved) if number < len(each[1])]
            for key, members in behind:
                pipe.zmscore(key, members)
            for (key, members), scores in zip(behind, pipe.execute()):
                for member, known in zip(members, scores):
                    seen, confirmed, replaced_after, _ = move = moves[member]
                    if not confirmed and (known is None or known < seen):
                        unconfirmed[member] = move
                    elif replaced_after is not None and known is not None and known > latest:
                        pipe.eval(REPLACE, 1, key, member, seen, latest)
            pipe.execute()
        return unconfirmed

    def count(self, cuts: Sequence[float], until: float) -> Counts:
        """Count in one round trip per server. The counts of a shard are consistent; those of two
        shards may be some milliseconds apart, but no user moves from one to the other."""
        distinct = list(dict.fromkeys(cuts))
        since = dict.fromkeys(distinct, 0)
        newest: list[int] = []
        whole: list[float] = []
        for server, keys in group_by_node(self.client, self.keys):
            pipe = server.pipeline(transaction=False)
            pipe.info("server")
            for key in keys:
                pipe.zrangebyscore(key, "-inf", f"({EARLIEST}", withscores=True)
                pipe.zrevrangebyscore(key, until, EARLIEST, start=0, num=1, withscores=True)
                for cut in distinct:
                    pipe.zcount(key, max(cut, EARLIEST), until)
            answers = iter(pipe.execute())
            mark = WHOLE + run_id(next(answers))
            for _ in keys:
                marks, newest_of = dict(next(answers)), next(answers)
                whole += [marks[mark] - BELOW] if mark in marks else []
                newest += [int(seen) for _, seen in newest_of]
                for cut in distinct:
                    since[cut] += next(answers)
        return Counts(
            since=since,
            newest=max(newest, default=None),
            is_whole=len(whole) == len(self.keys),
            whole_since=max(whole, default=0),
        )

    def servers(self) -> list[dict[str, Any]]:
        """Return the sections "server" and "memory" of each server's INFO."""
        found = []
        for server, _ in group_by_node(self.client, self.keys):
            server.eval("return 1", 0)  # writing needs it, and ACLs may forbid it
            found.append({**server.info("server"), **server.info("memory")})
        return found

    def try_lock_commands(self) -> None:
        """Run the lock's commands on another key: ACLs may forbid them, and then no shard could be
        refilled."""
        self.lock(1, self.check_key)
        self.keep_lock(1, self.check_key)
        self.unlock(self.check_key)

    def scan(self, key: str, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Return the next users of a shard, about `count`, and the cursor for the ones after them:
        0 at the end."""
        cursor, pairs = self.server_of(key).zscan(key, cursor, count=count)
        return cursor, [member for member, _ in pairs if not member.startswith(b"\xff")]

    def seen_after(self, t: float, count: int) -> list[bytes]:
        """Return users with a time after `t`, at most `count` of each shard."""
        found = []
        for server, keys in group_by_node(self.client, self.keys):
            pipe = server.pipeline(transaction=False)
            for key in keys:
                pipe.zrangebyscore(key, f"({t}", "+inf", start=0, num=count)
            found += [member for members in pipe.execute() for member in members]
        return found

    # Marks

    def begin_resync(self, token: str) -> dict[str, bytes]:
        """Mark the shards that are not whole. Return their keys, with their server's run id."""
        found = {}
        for server, keys in group_by_node(self.client, self.keys):
            run = run_id(server.info("server"))
            for key in keys:
                if server.zscore(key, WHOLE + run) is None:
                    server.zremrangebyscore(key, "-inf", f"({EARLIEST}")
                    server.zadd(key, {RESYNC + token.encode(): BELOW})
                    found[key] = run
        return found

    def finish_resync(self, token: str, found: Mapping[str, bytes], since: int) -> None:
        """Mark as whole the shards that have not been lost again meanwhile."""
        for key, run in found.items():
            mark = RESYNC + token.encode()
            self.server_of(key).eval(FINISH, 1, key, mark, BELOW + since, WHOLE + run)

    def unmark(self) -> None:
        """Remove the marks of all shards: pending writes were lost."""
        for key in self.keys:
            self.server_of(key).zremrangebyscore(key, "-inf", f"({EARLIEST}")

    # The lock on refilling shards, unless another key is given

    def lock(self, seconds: int, key: str | None = None) -> bool:
        """Return False if another process holds the lock."""
        key = key or self.lock_key
        return bool(self.server_of(key).set(key, 1, nx=True, ex=seconds))

    def keep_lock(self, seconds: int, key: str | None = None) -> None:
        key = key or self.lock_key
        self.server_of(key).expire(key, seconds)

    def unlock(self, key: str | None = None) -> None:
        key = key or self.lock_key
        self.server_of(key).delete(key)


def spread_keys(prefix: str) -> list[str]:
    """Return one key in each of SHARDS equal parts of a Cluster's hash slots, so that its nodes get
    about the same number of shards. The keys depend only on the prefix."""
    keys: dict[int, str] = {}
    numbers = count()
    while len(keys) < SHARDS:
        key = f"{prefix}seen.{next(numbers)}"
        keys.setdefault(key_slot(key.encode(), SHARDS * 1024) // 1024, key)
    return [key for _, key in sorted(keys.items())]


def run_id(info: Mapping[str, Any]) -> bytes:
    """Return the id of a server's process, which changes at a restart."""
    return str(info["run_id"]).encode()
