"""The user source: from a user's id to a `UserRecord`, or ``None`` for one that is unknown.

As written it answers from the log. Put your feature store in its place.
"""

from pathlib import Path

from aif_jax import UserRecord
from aif_jax.data import load

DATA = load(Path(__file__).with_name("config.toml"), content_width=0)  # the tables hold the content

_from_log = DATA.user_source()


def users(user: int | str) -> UserRecord | None:
    """Return what is known of a user. Runs in a thread of the engine, so it may wait."""
    # Of your own store, the most recent behaviour first:
    #     return UserRecord(features={"country": row.country}, items=row.items, types=row.types)
    return _from_log(user)


async def users_async(user: int | str) -> UserRecord | None:
    """Do the same with an asynchronous client: ``aif serve ... --users users:users_async``."""
    return _from_log(user)
