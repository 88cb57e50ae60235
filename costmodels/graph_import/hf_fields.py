"""Read the keys of a Hugging Face config, collecting every problem before any is reported."""

from collections.abc import Mapping, Sequence

__all__ = ["Fields"]


class Fields:
    """The keys of one (nested) config.

    A wrong or missing value is noted, and 1 stands in for it until the end; what must hold between several
    keys is judged only while no problem is known, so a stand-in never causes one.
    """

    def __init__(self, values: Mapping[str, object], *, prefix: str = "") -> None:
        self.values = values
        self.prefix = prefix
        self.problems: list[str] = []

    def note(self, key: str, problem: str) -> None:
        """Note what is wrong with `key`."""
        self.problems.append(f"{self.prefix}{key}: {problem}")

    def get(self, *keys: str) -> tuple[str, object]:
        """Return the first of `keys` that has a value, and that value; None where there is none."""
        for key in keys:
            if self.values.get(key) is not None:
                return key, self.values[key]
        return keys[0], None

    def count(self, *keys: str, default: int | None = None) -> int:
        """Return a whole number of at least 1 under any of `keys`; without a default one must be there."""
        key, value = self.get(*keys)
        if value is None:
            if default is None:
                others = f" (or {', '.join(keys[1:])})" if len(keys) > 1 else ""
                self.note(key, f"missing{others}; it must be a whole number of at least 1")
                return 1
            return default
        return self._whole(key, value, least=1)

    def optional(self, *keys: str, default: int | None = None, least: int = 1) -> int | None:
        """Return a whole number of at least `least`, or the default where the key is absent or null."""
        key, value = self.get(*keys)
        return default if value is None else self._whole(key, value, least=least)

    def amount(self, *keys: str, default: int = 0) -> int:
        """Return a whole number of at least 0."""
        key, value = self.get(*keys)
        return default if value is None else self._whole(key, value, least=0)

    def _whole(self, key: str, value: object, *, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or int(value) != value:
            self.note(key, f"{value!r} is not a whole number of at least {least}")
            return least or 1
        if value < least:
            self.note(key, f"{value!r} is not a whole number of at least {least}")
            return least or 1
        return int(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.note(key, f"{value!r} is neither true nor false")
            return default
        return value

    def rate(self, *keys: str) -> bool:
        """Return whether any of the dropout rates under `keys` is above zero."""
        found = False
        for key in keys:
            value = self.values.get(key, 0.0) or 0.0
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                self.note(key, f"{value!r} is not a rate from 0 up to 1")
            else:
                found = found or value > 0
        return found

    def choice(self, key: str, *, accepted: Sequence[str], default: str) -> str:
        """Return one of the `accepted` words."""
        value = self.values.get(key, default)
        if value not in accepted:
            self.note(key, f"{value!r} is not one of {', '.join(accepted)}")
            return default
        return str(value)

    def sequence(self, key: str, *, length: int) -> tuple[object, ...] | None:
        """Return the list under `key`, one entry per layer, or None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or len(value) != length:
            found = f"{len(value)} entries" if isinstance(value, list | tuple) else repr(value)
            self.note(key, f"{found}, where a list of {length} (one per layer) is accepted")
            return None
        return tuple(value)

    def nested(self, key: str) -> "Fields":
        """Return the config under `key`, which shares this one's list of problems."""
        value = self.values.get(key)
        if not isinstance(value, Mapping):
            self.note(key, f"{value!r} is not a mapping of keys to values")
            value = {}
        inner = Fields(value, prefix=f"{self.prefix}{key}.")
        inner.problems = self.problems
        return inner

    def head_dim(self, hidden: int, heads: int, *, hidden_key: str, heads_key: str) -> int:
        """Return `hidden / heads`, or the width that `head_dim` states."""
        stated = self.optional("head_dim")
        if stated is not None:
            return stated
        if hidden % heads == 0:
            return hidden // heads
        if not self.problems:
            self.note(heads_key, f"{heads} does not divide {hidden_key} ({hidden}), and there is no head_dim")
        return 1

    def kv_heads(self, heads: int, *, keys: Sequence[str], heads_key: str, default: int) -> int:
        """Return the number of key and value heads, which must divide that of the query heads."""
        key, _ = self.get(*keys)
        kv_heads = self.count(*keys, default=default)
        if heads % kv_heads == 0:
            return kv_heads
        if not self.problems:
            self.note(key, f"{kv_heads} does not divide {heads_key} ({heads})")
        return 1
