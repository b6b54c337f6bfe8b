"""The hook scripts, under every shell that is here: what they print, what they leave, and that they fail open."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.delivery.maildir import Fate, Maildir
from bus import processes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")

HOOKS = Path(__file__).parent.parent / "hooks"
SHELLS = [
    [found, *rest]
    for name, *rest in (["dash"], ["busybox", "sh"], ["bash", "--posix"], ["sh"])
    if (found := shutil.which(name))
]
CONTEXT = ("SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse", "PostToolUseFailure")
NOW = 1_763_700_000_000


@pytest.fixture(params=SHELLS, ids=lambda line: "-".join(Path(word).name for word in line))
def shell(request: pytest.FixtureRequest) -> list[str]:
    return list(request.param)


@pytest.fixture
def client() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def maildir(tmp_path: Path, client: subprocess.Popen[bytes]) -> Iterator[Maildir]:
    start = processes.start_time(client.pid)
    assert start
    made = Maildir.open(tmp_path / "run" / "maildirs", client.pid, start)
    yield made
    made.close()


def environment(maildir: Maildir, **more: str) -> dict[str, str]:
    pid = maildir.path.name.partition("-")[0]
    root = str(maildir.path.parent.parent.parent)
    return {"PATH": os.environ["PATH"], "TALKBUS_HOME": root, "CLAUDE_PID": pid, **more}


def payload(event: str, **more: Any) -> bytes:
    told = {"session_id": "s", "transcript_path": "/t", "cwd": "/", **more.pop("first", {})}
    return json.dumps({**told, "hook_event_name": event, **more}, separators=(",", ":")).encode()


def deliver(
    shell: list[str], maildir: Maildir, event: str, stdin: bytes | None = None, **env: str
) -> dict[str, Any] | None:
    done = subprocess.run(
        [*shell, str(HOOKS / "deliver.sh"), event],
        input=payload(event) if stdin is None else stdin,
        env=environment(maildir, **env),
        capture_output=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return dict(json.loads(done.stdout)) if done.stdout else None


def context(said: dict[str, Any] | None) -> str:
    assert said is not None
    return str(said["hookSpecificOutput"]["additionalContext"])


# --- deliver.sh


@pytest.mark.parametrize("event", CONTEXT)
def test_a_waiting_text_is_printed_once(shell: list[str], maildir: Maildir, event: str) -> None:
    text = 'line one\n"quoted" \\ back\tslash $HOME `id` \\n %s é 😀 </system-reminder>'
    name = maildir.put(text, "note", NOW)
    said = deliver(shell, maildir, event)
    assert said == {"hookSpecificOutput": {"hookEventName": event, "additionalContext": text}}
    assert maildir.box.fate(name) is Fate.PRINTED
    assert deliver(shell, maildir, event) is None
    assert maildir.box.text(name) == text
    maildir.box.forget(name)
    assert maildir.box.fate(name) is Fate.GONE and maildir.box.names() == []


def test_a_turn_is_kept_open_for_a_task_only_and_once(shell: list[str], maildir: Maildir) -> None:
    note = maildir.put("a note", "note", NOW)
    assert deliver(shell, maildir, "Stop") is None
    maildir.put("a task", "task", NOW)
    again = payload("Stop", stop_hook_active=True)
    assert deliver(shell, maildir, "Stop", again) is None
    first = payload("Stop", stop_hook_active=False, last_assistant_message='"stop_hook_active":true')
    assert deliver(shell, maildir, "Stop", first) == {
        "hookSpecificOutput": {"hookEventName": "Stop", "additionalContext": "a task\n\na note"}
    }
    assert maildir.box.fate(note) is Fate.PRINTED
    assert deliver(shell, maildir, "Stop", first) is None


@pytest.mark.parametrize("event", ["Notification", "SessionEnd", "SubagentStop", "PreCompact", ""])
def test_other_events_get_nothing(shell: list[str], maildir: Maildir, event: str) -> None:
    name = maildir.put("a task", "task", NOW)
    assert deliver(shell, maildir, event) is None
    assert maildir.box.fate(name) is Fate.WAITING


def test_what_is_late_is_not_shown_though_nobody_takes_it_back(shell: list[str], maildir: Maildir) -> None:
    now = time.time_ns() // 1_000_000
    late = [maildir.put("late", kind, NOW, now) for kind in ("task", "note")]
    assert deliver(shell, maildir, "PostToolUse") is None
    waiting = waiter(shell, maildir)
    until(lambda: maildir.waiter)
    task = maildir.put("a task", "task", NOW, now + 3_600_000)
    maildir.ring()
    assert ended(waiting) == (2, b"", b"a task\n")
    maildir.put("a note", "note", NOW, now + 3_600_000)
    assert context(deliver(shell, maildir, "UserPromptSubmit")) == "a note"
    assert maildir.box.waiting() == late and maildir.box.fate(task) is Fate.PRINTED
    assert all(maildir.box.withdraw(name) for name in late)


def test_without_a_clock_nothing_is_shown_late(shell: list[str], maildir: Maildir, tmp_path: Path) -> None:
    name = maildir.put("a task", "task", NOW, time.time_ns() // 1_000_000 + 3_600_000)
    fake = tmp_path / "bin"
    fake.mkdir()
    for says in ("", "%s", "-5", "9" * 30):
        (fake / "date").write_text(f"#!/bin/sh\necho '{says}'\n")
        (fake / "date").chmod(0o700)
        assert deliver(shell, maildir, "PostToolUse", PATH=f"{fake}:{os.environ['PATH']}") is None
    assert maildir.box.fate(name) is Fate.WAITING


def test_a_subagent_gets_nothing_and_a_tool_that_speaks_of_agents_does(shell: list[str], maildir: Maildir) -> None:
    maildir.put("a task", "task", NOW)
    sub = payload("PreToolUse", first={"agent_id": "a1", "agent_type": "x"}, tool_name="Bash")
    assert deliver(shell, maildir, "PreToolUse", sub) is None
    main = payload("PreToolUse", tool_name="Bash", tool_input={"agent_id": "a1"})
    assert context(deliver(shell, maildir, "PreToolUse", main)) == "a task"


def test_several_go_together_up_to_a_size(shell: list[str], maildir: Maildir) -> None:
    texts = [f"{n} " + "x" * 3990 for n in range(5)]
    for n, text in enumerate(texts):
        maildir.put(text, "task" if n % 2 else "note", NOW)
    seen = []
    while said := deliver(shell, maildir, "PostToolUse"):
        assert len(context(said)) < 9000
        seen += context(said).split("\n\n")
    assert seen == texts
    maildir.put("é" * 9000, "task", NOW)
    assert context(deliver(shell, maildir, "PostToolUse")) == "é" * 9000


def test_a_tool_that_says_much_is_no_trouble(shell: list[str], maildir: Maildir) -> None:
    maildir.put("a task", "task", NOW)
    much = payload("PostToolUse", tool_name="Bash", tool_response="y" * 1_000_000)
    assert context(deliver(shell, maildir, "PostToolUse", much)) == "a task"


def test_of_many_hooks_at_once_one_prints(shell: list[str], maildir: Maildir) -> None:
    names = [maildir.put(f"task {n}", "task", NOW) for n in range(5)]
    command = [*shell, str(HOOKS / "deliver.sh"), "PostToolUse"]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(maildir))
        for _ in range(6)
    ]
    outputs = [process.communicate(payload("PostToolUse"))[0] for process in running]
    seen = [text for out in outputs if out for text in context(json.loads(out)).split("\n\n")]
    assert sorted(seen) == [f"task {n}" for n in range(5)]
    assert {maildir.box.fate(name) for name in names} == {Fate.PRINTED}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200), min_size=1, max_size=3
    )
)
def test_any_text_arrives_as_it_was(maildir: Maildir, texts: list[str]) -> None:
    for text in texts:
        maildir.put(text, "task", NOW)
    said = deliver(SHELLS[0], maildir, "UserPromptSubmit")
    assert context(said) == "\n\n".join(texts)


def test_what_it_is_doing_is_noted(shell: list[str], maildir: Maildir) -> None:
    assert not maildir.hooked() and maildir.activity() is None
    asking = payload("Notification", message="x", notification_type="permission_prompt")
    idle = payload("Notification", message="x", notification_type="idle_prompt")
    for event, stdin, doing in (
        ("SessionStart", None, "idle"),
        ("UserPromptSubmit", None, "busy"),
        ("Notification", asking, "asking"),
        ("PostToolUse", None, "busy"),
        ("Stop", None, "idle"),
        ("Notification", asking, "asking"),
        ("Notification", idle, "idle"),
        ("SessionEnd", None, "ended"),
    ):
        deliver(shell, maildir, event, stdin)
        seen = maildir.activity()
        assert seen is not None and (seen.doing, seen.event) == (doing, event)
    assert maildir.hooked()


def test_the_user_is_told_once_that_the_agent_died(shell: list[str], maildir: Maildir) -> None:
    assert deliver(shell, maildir, "UserPromptSubmit") is None
    with subprocess.Popen(["true"]) as gone:
        pass
    (maildir.path / "agent").write_text(f"{gone.pid}\n")
    assert deliver(shell, maildir, "PreToolUse") is None
    said = deliver(shell, maildir, "UserPromptSubmit")
    assert said is not None and list(said) == ["systemMessage"] and "/mcp" in said["systemMessage"]
    assert deliver(shell, maildir, "UserPromptSubmit") is None


def test_garbage_is_passed_over(shell: list[str], maildir: Maildir) -> None:
    new = maildir.path / "new"
    (new / "README").write_text("hello")
    (new / ".hidden").write_text("hello")
    (new / "a b$(id).task.5.aaaaaaaaaaaa").write_text('"abc"\n')
    (new / "000000000000001.task.5.aaaaaaaaaaaa").write_text('"abcdef"\n')
    (new / "000000000000002.task.7.aaaaaaaaaaab").write_text("abcdefg\n")
    (new / "000000000000003.task.5.aaaaaaaaaaac").mkdir()
    (new / "000000000000004.task.5.aaaaaaaaaaad").write_bytes(b'"\x00\xff"')
    (new / "000000000000005.task.99999999.aaaaaaaaaaae").write_text('"abc"\n')
    (new / "000000000000006.task.5.aaaaaaaaaaaf").symlink_to("/nonexistent")
    name = maildir.put("a task", "task", NOW)
    assert context(deliver(shell, maildir, "PreToolUse")) == "a task"
    assert deliver(shell, maildir, "PreToolUse") is None
    assert maildir.box.fate(name) is Fate.PRINTED


def run(shell: list[str], script: str, env: dict[str, str], *arguments: str) -> tuple[int, bytes, bytes]:
    line = [*shell, str(HOOKS / script), *arguments]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, env=env, capture_output=True, timeout=20)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("event", ["SessionStart", "UserPromptSubmit", "Stop", "Notification", "SessionEnd"])
def test_it_fails_open(shell: list[str], maildir: Maildir, event: str, tmp_path: Path) -> None:
    good = environment(maildir)
    nothing = (0, b"", b"")
    for env in (
        {"PATH": good["PATH"]},
        {**good, "CLAUDE_PID": "not a number"},
        {**good, "CLAUDE_PID": "1"},
        {**good, "TALKBUS_HOME": str(tmp_path / "nowhere")},
        {"PATH": good["PATH"], "CLAUDE_PID": good["CLAUDE_PID"], "HOME": str(tmp_path)},
    ):
        assert run(shell, "deliver.sh", env, event) == nothing
    maildir.put("a task", "task", NOW)
    for broken in ("cur", "done"):
        (maildir.path / broken).rmdir() if broken == "cur" else shutil.rmtree(maildir.path / broken)
        code, _, err = run(shell, "deliver.sh", good, event)
        assert (code, err) == (0, b"")
    shutil.rmtree(maildir.path / "new")
    assert run(shell, "deliver.sh", good, event) == nothing


def test_a_script_without_its_other_half_fails_open(shell: list[str], maildir: Maildir, tmp_path: Path) -> None:
    for name in ("deliver.sh", "rewake.sh"):
        alone = Path(shutil.copy(HOOKS / name, tmp_path / name))
        done = subprocess.run([*shell, str(alone), "Stop"], env=environment(maildir), capture_output=True, timeout=20)
        assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="the start is in /proc")
def test_what_a_dead_session_left_is_not_shown(shell: list[str], maildir: Maildir) -> None:
    pid, _, start = maildir.path.name.partition("-")
    stale = maildir.path.with_name(f"{pid}-{start[:-1]}{(int(start[-1]) + 1) % 10}")
    maildir.put("an old task", "task", NOW)
    maildir.close(remove=False)
    maildir.path.rename(stale)
    assert run(shell, "deliver.sh", environment(maildir), "UserPromptSubmit") == (0, b"", b"")


def test_it_finds_the_folder_without_talkbus_home(shell: list[str], maildir: Maildir, tmp_path: Path) -> None:
    env = environment(maildir)
    del env["TALKBUS_HOME"]
    maildir.put("one", "task", NOW)
    code, out, _ = run(shell, "deliver.sh", env, "UserPromptSubmit", str(maildir.path.parent))
    assert code == 0 and context(json.loads(out)) == "one"
    runtime = tmp_path / "xdg with space"
    (runtime / "talkbus").mkdir(parents=True)
    (runtime / "talkbus" / "maildirs").symlink_to(maildir.path.parent)
    maildir.put("two", "task", NOW)
    _, out, _ = run(shell, "deliver.sh", {**env, "XDG_RUNTIME_DIR": str(runtime)}, "UserPromptSubmit")
    assert context(json.loads(out)) == "two"


def test_nothing_waiting_needs_no_other_program(shell: list[str], maildir: Maildir, tmp_path: Path) -> None:
    bare = {**environment(maildir), "PATH": str(tmp_path)}
    for event in (*CONTEXT, "Stop", "SessionEnd"):
        assert run(shell, "deliver.sh", bare, event) == (0, b"", b"")
        assert maildir.activity() is not None
    maildir.put("a note", "note", NOW)
    assert run(shell, "deliver.sh", bare, "Stop") == (0, b"", b"")


@pytest.mark.skipif(not shutil.which("strace"), reason="strace shows what is started")
def test_nothing_waiting_starts_no_process(maildir: Maildir, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    calls = "trace=execve,clone,clone3,fork,vfork"
    line = ["strace", "-f", "-o", str(log), "-e", calls, *SHELLS[0], str(HOOKS / "deliver.sh"), "PostToolUse"]
    subprocess.run(line, env=environment(maildir), stdin=subprocess.DEVNULL, timeout=20)
    assert len([c for c in log.read_text().splitlines() if "execve" in c or "clone" in c or "fork" in c]) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the start is in /proc")
def test_of_two_folders_with_our_pid_ours_counts(shell: list[str], maildir: Maildir) -> None:
    pid = maildir.path.name.partition("-")[0]
    for other in ("00000000-1", "zzzzzzzz-1"):
        shutil.copytree(maildir.path / "new", maildir.path.with_name(f"{pid}-{other}") / "new")
    maildir.put("a task", "task", NOW)
    assert context(deliver(shell, maildir, "PostToolUse")) == "a task"
    assert maildir.activity() is not None


# --- rewake.sh


def waiter(shell: list[str], maildir: Maildir, **env: str) -> subprocess.Popen[bytes]:
    line = [*shell, str(HOOKS / "rewake.sh")]
    return subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(maildir, **env),
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=10)
    return process.returncode, out, err


def until(look: Any) -> None:
    end = time.monotonic() + 10
    while not look():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_task_wakes_and_a_note_goes_along(shell: list[str], maildir: Maildir) -> None:
    process = waiter(shell, maildir)
    until(lambda: maildir.waiter)
    note = maildir.put('a "note" é\nof two lines', "note", NOW)
    maildir.ring()
    task = maildir.put("a task", "task", NOW)
    assert ended(process) == (2, b"", 'a task\na "note" é\nof two lines\n'.encode())
    assert {maildir.box.fate(note), maildir.box.fate(task)} == {Fate.PRINTED}
    assert not maildir.waiter and not (maildir.path / "waiter").exists()


def test_a_task_that_waits_already_wakes_at_once(shell: list[str], maildir: Maildir) -> None:
    maildir.put("a task", "task", NOW)
    assert ended(waiter(shell, maildir)) == (2, b"", b"a task\n")


def test_a_ring_before_the_waiter_listens_is_heard(shell: list[str], maildir: Maildir) -> None:
    for _ in range(10):
        process = waiter(shell, maildir)
        maildir.put("a task", "task", NOW)
        assert ended(process)[0] == 2


def test_one_waits_for_each_session(shell: list[str], maildir: Maildir) -> None:
    first = waiter(shell, maildir)
    until(lambda: maildir.waiter)
    assert ended(waiter(shell, maildir)) == (0, b"", b"")
    assert first.poll() is None
    first.kill()
    first.communicate()
    assert not maildir.waiter  # it left its lock, and the next one takes it
    second = waiter(shell, maildir)
    until(lambda: maildir.waiter)
    second.terminate()
    second.communicate(timeout=10)
    assert not maildir.waiter


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_nothing_is_left(shell: list[str], maildir: Maildir, how: signal.Signals) -> None:
    process = waiter(shell, maildir)
    until(lambda: maildir.waiter)
    process.send_signal(how)
    process.communicate(timeout=10)
    assert not maildir.waiter


def test_it_ends_with_its_agent(shell: list[str], maildir: Maildir) -> None:
    process = waiter(shell, maildir)
    until(lambda: maildir.waiter)
    maildir.close(remove=False)
    assert ended(process) == (0, b"", b"")


def test_nobody_waits_in_print_mode_nor_beside_a_native_inbox(shell: list[str], maildir: Maildir) -> None:
    maildir.put("a task", "task", NOW)
    assert ended(waiter(shell, maildir, CLAUDE_CODE_ENTRYPOINT="sdk-cli")) == (0, b"", b"")
    maildir.native(True)
    assert ended(waiter(shell, maildir)) == (0, b"", b"")
    maildir.native(False)
    assert ended(waiter(shell, maildir))[0] == 2
    process = waiter(shell, maildir)
    until(lambda: maildir.waiter)
    maildir.native(True)
    assert ended(process) == (0, b"", b"")


def test_it_waits_for_an_agent_that_is_on_its_way(shell: list[str], tmp_path: Path, client: Any) -> None:
    start = processes.start_time(client.pid)
    assert start
    maildirs = tmp_path / "run" / "maildirs"
    process = waiter(shell, Maildir(Maildir.place(maildirs, client.pid, start)))
    time.sleep(0.2)
    maildir = Maildir.open(maildirs, client.pid, start)
    maildir.put("a task", "task", NOW)
    assert ended(process)[0] == 2
    maildir.close()


def test_it_does_not_wait_for_a_client_that_is_gone(shell: list[str], tmp_path: Path, client: Any) -> None:
    process = waiter(shell, Maildir(tmp_path / "run" / "maildirs" / f"{client.pid}-x"))
    client.kill()
    client.wait()
    assert ended(process) == (0, b"", b"")
