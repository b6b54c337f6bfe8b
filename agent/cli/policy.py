"""`talkbus policy`: whose mail is accepted, held for a person, or refused."""

from __future__ import annotations

from typing import Any

import click

from agent.cli import exits, show
from agent.cli.call import Call, as_json, fetch, pass_call
from agent.cli.keyboard import at_keyboard, sender_options, whose


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def policy(ctx: click.Context, as_json: bool) -> int:
    """Say whose mail is accepted, held or refused.

    It is about the mail to all sessions of this machine. Without a rule mail from this machine is accepted, and mail
    from any other is held until you release it (talkbus hold). The most specific rule decides: a name at a machine
    first, then the machine, then everybody; each with the kind before without.

    \b
    talkbus policy                                      the rules, in the order they are tried
    talkbus policy set accept --machine laptop
    talkbus policy set hold --from api@laptop --kind task
    talkbus policy set refuse                           all other machines that have no rule
    talkbus policy unset --machine laptop
    """
    if ctx.invoked_subcommand is not None:
        return exits.DONE
    call = ctx.ensure_object(Call)
    with call.view() as view:
        parts = [value for value, _ in fetch(view, "policy", {})]
    rules = [part["rule"] for part in parts if "rule" in part]
    paused = next((int(part["paused"]) for part in parts if "paused" in part), 0)
    if as_json:
        show.document({"paused": paused, "rules": rules, "default": {"this machine": "accept", "others": "hold"}})
        return exits.DONE
    rows = [(rule["action"], about(rule), show.clock(int(rule["ts"]))) for rule in rules]
    rows += [("accept", "this machine", "by default"), ("hold", "every other machine", "by default")]
    show.table(("what", "mail from", "since"), rows)
    if paused:
        show.note(f"paused since {show.clock(paused)}: everything is held until 'talkbus resume'")
    return exits.DONE


def about(rule: dict[str, Any]) -> str:
    """Whose mail a rule is about, in words."""
    machine = "this machine" if rule.get("own") else rule.get("host") or rule.get("machine") or "every other machine"
    who = f"{rule['name']} at {machine}" if rule.get("name") else str(machine)
    return f"{who}, {rule['kind']}s only" if rule.get("kind") else who


KIND = click.option("--kind", type=click.Choice(["task", "note"]), help="Only mail of this kind.")


@policy.command("set")
@click.argument("action", type=click.Choice(["accept", "hold", "refuse"]))
@sender_options
@KIND
@as_json
@pass_call
def set_(call: Call, action: str, sender: str | None, machine: str | None, kind: str | None, as_json: bool) -> None:
    """Make a rule.

    It replaces the one about the same mail. What is held already stays held. A machine is kept by its key: another
    one under the same label is another machine.

    \b
    talkbus policy set accept --machine laptop
    talkbus policy set hold --from api@laptop --kind task
    """
    person = at_keyboard(call, "change the policy")
    args = {"action": action, **whose(sender, machine), **({"kind": kind} if kind else {})}
    rule = person.do("policy.set", args)["rule"]
    if as_json:
        show.document(rule)
    else:
        click.echo(show.safe(f"{rule['action']}: mail from {about(rule)}"))


@policy.command("unset")
@sender_options
@KIND
@as_json
@pass_call
def unset(call: Call, sender: str | None, machine: str | None, kind: str | None, as_json: bool) -> None:
    """Remove a rule.

    The one that is about exactly this mail; then the next less specific one decides.

    \b
    talkbus policy unset --machine laptop
    """
    person = at_keyboard(call, "change the policy")
    rule = person.do("policy.unset", {**whose(sender, machine), **({"kind": kind} if kind else {})})["rule"]
    if as_json:
        show.document(rule)
    else:
        click.echo(show.safe(f"no rule any more: mail from {about(rule)}"))
