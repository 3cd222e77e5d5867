"""What must hold of a pool's caps, told by its policy's books; pure."""

from __future__ import annotations

from collections import Counter

from sandboxkit.pool._policy import PoolPolicy


def went_in_vain(policy: PoolPolicy, doomed_before: set[int]) -> list[int]:
    """The slots that a step evicted for nobody: neither has their template too many now for those who want it, nor has
    the pool. Those who wait can use as many places as their templates' caps leave them."""
    slots = policy.slots.values()
    staying = Counter(s.spec.template for s in slots if not s.is_coming_free)
    wants = Counter(template for _, template in {(t.key or t.id, t.spec.template) for t in policy.queued})
    room = {t: policy.max_per_template.get(t, policy.max_live) - staying[t] for t in {*staying, *wants}}
    usable = sum(min(wants[template], max(0, room[template])) for template in room)
    if policy.max_live - staying.total() <= usable:
        return []
    evicted = [s for s in slots if s.doomed == "evicted" and s.id not in doomed_before]
    return [
        s.id
        for s in evicted
        if s.spec.template not in policy.max_per_template
        or policy.max_per_template[s.spec.template] - staying[s.spec.template] > wants[s.spec.template]
    ]


def too_many(policy: PoolPolicy) -> list[int]:
    """The slots that nobody uses, and that should have gone since a cap is exceeded, in all or of their template."""
    staying = [s for s in policy.slots.values() if not s.is_coming_free]
    caps: dict[str | None, int] = {None: policy.max_live, **policy.max_per_template}
    return [
        slot.id
        for template, cap in caps.items()
        if len(mine := [s for s in staying if template in (None, s.spec.template)]) > cap
        for slot in mine
        if slot.is_idle or slot.is_stocked
    ]
