"""test_pages.py: what is made from the one table of options: bitshard(1) and the completion for bash say what --help says."""
import os
import re
import shlex
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import common as c


def output(*words):
    done = c.run(0, [c.BITSHARD, *words])
    c.check(done.returncode == 0 and not done.stderr, f"bitshard {' '.join(words)}: exit {done.returncode} {done.stderr}")
    return done.stdout


COMMANDS = re.findall(r"^  ([a-z-]+) +\S", output("--help").split("Commands:\n")[1].split("\n\n")[0], re.M)


def options_of(command):
    """Long name: (letter, value's name, choices), as --help prints them."""
    text = output(command, "--help")
    found = {}
    for letter, name, value, rest in re.findall(r"^  (?:-(\w), |    )--(\S+)(?: (\S+))?((?:.*\n {20,})*.*)$", text, re.M):
        choices = re.search(r": (\S+\|\S+?)(?: \[|$)", " ".join(rest.split()))
        if name != "help":
            found[name] = (letter, value, choices.group(1).split("|") if choices else None)
    return found


class Completion:
    """A bash that has the completion; one for all questions, as it takes longer to start than to answer."""
    PROGRAM = r"""
. "$1"
while IFS= read -r line; do
    eval "COMP_WORDS=($line)"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _bitshard || exit
    printf '%s\n' "${COMPREPLY[@]}" .
done"""

    def __init__(self, script, directory):
        self.bash = subprocess.Popen(["bash", "-c", self.PROGRAM, "bash", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                     cwd=directory, text=True)

    def offered(self, *words):
        """What is offered for the last word; bash parts words at '='."""
        self.bash.stdin.write(shlex.join(["bitshard", *words]) + "\n")
        self.bash.stdin.flush()
        answer = []
        while (line := self.bash.stdout.readline()) != ".\n":
            if not line:
                c.check(False, f"completing {words}: bash ended: {self.bash.stderr.read()}")
                c.finish()
            answer.append(line.rstrip("\n"))
        return set(answer) - {""}

    def close(self):
        _, err = self.bash.communicate(timeout=20)
        c.check(self.bash.returncode == 0 and not err, f"bash: exit {self.bash.returncode} {err}")


def test_bash():
    if not shutil.which("bash"):
        print("no bash here")
        return
    script, directory = os.path.join(c.WORK, "completion.bash"), os.path.join(c.WORK, "complete")
    with open(script, "w", encoding="utf-8") as file:
        file.write(output("--bash-completion"))
    os.makedirs(directory, exist_ok=True)
    for name in ("model one.gguf", "model2.gguf"):
        open(os.path.join(directory, name), "w").close()

    completion = Completion(script, directory)
    offered = completion.offered
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-s", "bash", script], capture_output=True, text=True)
        c.check(done.returncode == 0, f"shellcheck: {done.stdout[:500]}")
    c.check(offered("") == {*COMMANDS, "--help", "--version"}, f"the commands: {offered('')}")
    c.check(offered("gen") == {"generate"} and offered("make-model", "t") == {"tiny"}, "a beginning is completed")
    for command in COMMANDS:
        options = options_of(command)
        long = {word for word in offered(command, "--") if word.startswith("--") and not word.startswith("--no-")}
        c.check(len(options) > 2 and long == {f"--{name}" for name in options} | {"--help"}, f"{command}: the options of --help: {long ^ {f'--{n}' for n in options}}")
        letters = {word for word in offered(command, "-") if len(word) == 2 and word != "-h"}
        c.check(letters == {f"-{letter}" for letter, _, _ in options.values() if letter}, f"{command}: letters {letters}")
        for name, (letter, value, choices) in options.items():
            spelled = [[f"--{name}", ""], [f"--{name}", "="]] + ([[f"-{letter}", ""]] if letter else [])
            files = {"model one.gguf", "model2.gguf"}
            for words in spelled:
                wanted = None if not value else set(choices) if choices else files if "FILE" in value or value == "MODEL" else set()
                if wanted is not None:
                    c.check(offered(command, *words) == wanted, f"{command} {' '.join(words)}: {offered(command, *words)}")
    c.check(offered("generate", "--model", "=", "model2") == {"model2.gguf"} and offered("generate", "--merge", "all") == {"allreduce", "allgather"},
            "values are completed, behind = too")
    completion.close()


def test_man():
    page = output("--man")
    plain = page.replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")
    for command in COMMANDS:
        c.check(f"\n.SS {command}\n" in plain, f"bitshard(1) describes {command}")
        for name, (letter, value, _) in options_of(command).items():
            head = f"{f'-{letter}, ' if letter else ''}--{name}{f' {value}' if value else ''}"
            entries = re.findall(rf"^\.TP\n{re.escape(head)}(?:,.*)?\n(?:.*\n)*?Environment: (\S+)\. Commands: (.*)\.$", plain, re.M)
            variable = "BITSHARD_" + name.upper().replace("-", "_")
            c.check(any(env == variable and command in where.split(", ") for env, where in entries), f"bitshard(1): {head} of {command}: {entries}")
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "ENVIRONMENT", "EXIT STATUS"):
        c.check(f"\n.SH {section}\n" in plain, f"bitshard(1) has {section}")
    for tool in (["groff", "-man", "-Tutf8", "-K", "utf8", "-ww", "-z"], ["mandoc", "-Tlint", "-Werror"]):
        if shutil.which(tool[0]):
            done = subprocess.run(tool, input=page, capture_output=True, text=True)
            c.check(done.returncode == 0 and "error" not in (done.stdout + done.stderr).lower(), f"{tool[0]}: {(done.stdout + done.stderr)[:300]}")


test_bash()
test_man()
c.finish()
