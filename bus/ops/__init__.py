"""The operations of PROTOCOL.md §10, one file per family, and the OPS table that composes them."""

from __future__ import annotations

from bus.ops import hold, machines, mail, naming, state, upkeep
from bus.ops.kinds import Op

OPS: dict[str, Op] = {
    "send": Op(
        mail.send,
        "to:list kind?:text tag?:text re?:text thread?:text ttl?:num exclude?:list hops?:num new?:flag ask?:num "
        "answers?:list",
    ),
    "receipt": Op(mail.receipt, "moved:list of?:list", metered=False),
    "settle": Op(mail.settle_ids, "ids:list proof:text of?:list"),
    "rename": Op(naming.rename, "name:text"),
    "take": Op(naming.take, "name:text term?:num fresh?:flag"),
    "status": Op(naming.status, "summary?:text activity?:text busy?:num metadata?:map wake?:text"),
    "state.set": Op(state.set_value, "key:text ver?:num ttl?:num"),
    "state.delete": Op(state.delete, "key:text ver?:num"),
    "policy.set": Op(hold.set_rule, "action:text machine?:text name?:text kind?:text"),
    "policy.unset": Op(hold.unset_rule, "machine?:text name?:text kind?:text"),
    "hold.release": Op(hold.release, "ids:list of?:list"),
    "hold.drop": Op(hold.drop, "ids:list reason?:text of?:list"),
    "pause": Op(hold.pause, "on:flag"),
    "prune": Op(upkeep.prune, "before:num", role="owner"),
    "lan.invite": Op(machines.invite, "digest:text role?:text label?:text ttl?:num", role="owner"),
    "lan.close": Op(machines.close, "", role="owner"),
    "lan.revoke": Op(machines.revoke, "host:text", role="owner"),
    "lan.role": Op(machines.change_role, "host:text role:text", role="owner"),
}
