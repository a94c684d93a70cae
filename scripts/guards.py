"""Deletes one guard of the core at a time, and says whether the test that is named for it turns red.

usage: guards.py [--list] [--only NAME]...

The guards are in scripts/guards.toml: each has a text that occurs once in its file, and what stands there without the guard.
The tree is copied, once, into the build folder (CARGO_TARGET_DIR, else a folder of the cache); there the named tests are run as
they are, and then once for each guard without it. Prints `guard, test, red` or `GREEN`, or `BROKEN` where what is left does not
compile. Exit code 0 if every test was green before and red without its guard, 1 if not, 2 if the words are wrong.

Honoured: CARGO, CARGO_TARGET_DIR, XDG_CACHE_HOME.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "scripts" / "guards.toml"

# The exit codes of cargo-nextest that say what a run came to (its documentation, "Exit codes").
PASSED, NONE_RUN, FAILED, NOT_BUILT = 0, 4, 100, 101

# What a test run came to, in a word.
WORDS = {PASSED: "GREEN", FAILED: "red", NOT_BUILT: "BROKEN", NONE_RUN: "MISSING"}


def fail(found, hint):
    print(f"error: {found}\n\nhint: {hint}", file=sys.stderr)
    raise SystemExit(2)


def read_guards(only):
    guards = tomllib.loads(TABLE.read_text())["guard"]
    unknown = set(only) - {guard["name"] for guard in guards}
    if unknown:
        fail(f"there is no guard {', '.join(sorted(unknown))}", "list them with --list")
    return [guard for guard in guards if not only or guard["name"] in only]


def places():
    """Returns where is built, and where the copy of the tree lies."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "trestle" / "guards"
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or cache / "target")
    target = target if target.is_absolute() else ROOT / target
    return target, target / "guards-tree"


def copy_tree(to):
    """Makes the copy equal to the tree; what is equal already is not written, so that it is not built again."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    paths = {path for path in listed.stdout.decode().split("\0") if path and (ROOT / path).is_file()}
    # What `scripts/setup.sh` writes for one checkout holds for its copy too.
    paths |= {path for path in [".cargo/config.toml"] if (ROOT / path).is_file()}
    for there in [file for file in to.rglob("*") if file.is_file()]:
        if str(there.relative_to(to)) not in paths:
            there.unlink()
    for path in sorted(paths):
        source, copy = (ROOT / path).read_bytes(), to / path
        if not copy.is_file() or copy.read_bytes() != source:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source)
            shutil.copymode(ROOT / path, copy)


def run_tests(tree, target, guard, tests, log):
    """Runs tests of a guard's package; returns nextest's exit code."""
    names = " | ".join(f"test(/(^|::){test}$/)" for test in tests)
    command = [os.environ.get("CARGO", "cargo"), "nextest", "run", "--profile", "guards", "--no-fail-fast"]
    command += ["-p", guard["package"], *guard["target"].split(), "-E", names]
    # Each guard is a build of its own: of the crate that is built again and again, a quick one does.
    command += ["--config", f"profile.dev.package.{guard['package']}.opt-level=0"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target)}
    with open(log, "w") as words:
        code = subprocess.run(command, cwd=tree, env=environment, stdout=words, stderr=subprocess.STDOUT).returncode
    if code not in WORDS:
        tail = "\n".join(pathlib.Path(log).read_text().splitlines()[-20:])
        fail(f"`{' '.join(command)}` ended with {code}:\n{tail}", f"the whole is in {log}")
    return code


def without(guard, text):
    """Returns a file's text without the guard."""
    if text.count(guard["find"]) != 1:
        fail(
            f"{guard['file']} holds the text of the guard `{guard['name']}` {text.count(guard['find'])} times, not once",
            f"correct its `find` in {TABLE.relative_to(ROOT)}",
        )
    return text.replace(guard["find"], guard["replace"])


def say(*words):
    print(", ".join(words), flush=True)


def check_green(guards, tree, target, log):
    """Runs all the tests with every guard in place; returns how many are not green."""
    groups = {}
    for guard in guards:
        groups.setdefault((guard["package"], guard["target"]), (guard, {}))[1].update(dict.fromkeys(guard["tests"]))
    wrong = 0
    for guard, tests in groups.values():
        if run_tests(tree, target, guard, tests, log) == PASSED:
            continue
        for test in tests:
            code = run_tests(tree, target, guard, [test], log)
            if code != PASSED:
                say("with every guard", test, WORDS[code])
                wrong += 1
    return wrong


def check_red(guard, tree, target, log):
    """Deletes a guard in the copy, runs its tests, and puts it back; returns how many are not red."""
    file, wrong = tree / guard["file"], 0
    whole = file.read_text()
    file.write_text(without(guard, whole))
    try:
        for test in guard["tests"]:
            code = run_tests(tree, target, guard, [test], log)
            say(guard["name"], test, WORDS[code])
            wrong += code != FAILED
    finally:
        file.write_text(whole)
    return wrong


def main():
    parser = argparse.ArgumentParser(prog="guards.py", description="Deletes one guard at a time and looks for the red test.")
    parser.add_argument("--list", action="store_true", help="print guards, tests and invariants, and run nothing")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="look at this guard alone; may be repeated")
    options = parser.parse_args()
    guards = read_guards(options.only)
    if options.list:
        for guard in guards:
            say(guard["name"], " ".join(guard["tests"]), guard["invariant"])
        return 0
    cargo = os.environ.get("CARGO", "cargo")
    if subprocess.run([cargo, "nextest", "--version"], capture_output=True).returncode:
        fail("cargo-nextest is missing", "cargo install cargo-nextest --locked")
    target, tree = places()
    tree.mkdir(parents=True, exist_ok=True)
    copy_tree(tree)
    log = target / "guards.log"
    wrong = check_green(guards, tree, target, log)
    if not wrong:
        wrong = sum(check_red(guard, tree, target, log) for guard in guards)
    print(f"guards: {len(guards)} looked at, {wrong} tests are not as they should be", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
