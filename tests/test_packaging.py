"""What is built and published elsewhere agrees with itself: pins, workflows, forms, the image. It cannot run here."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from matrix.environments import SETUPTOOLS
from package import OF_TORCH, TOOLS

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, WHEELS = PYPROJECT["project"], PYPROJECT["tool"]["cibuildwheel"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
DOCKERFILE = (ROOT / ".ci" / "Dockerfile").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def loaded(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in loaded(workflow)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_to_a_commit_and_may_only_read(workflow):
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name)] == []
    assert loaded(workflow)["permissions"] == {"contents": "read"}


def test_one_commit_for_each_action():
    used = {step["uses"] for workflow in WORKFLOWS for step in steps(workflow) if "uses" in step}
    assert len(used) == len({name.partition("@")[0] for name in used})


def test_only_publishing_gets_an_identity_and_no_token_is_there():
    path = ROOT / ".github" / "workflows" / "release.yml"
    jobs = loaded(path)["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert set(jobs["publish"]["needs"]) == jobs.keys() - {"publish"}
    assert "secrets." not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_the_commands_of_a_workflow_exist(workflow):
    named = set(re.findall(r"\bmake ([a-z-]+)", " ".join(step.get("run", "") for step in steps(workflow))))
    assert named
    assert named <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_the_same_torch_and_setuptools_everywhere():
    torch = re.search(r"^TORCH +\?= (\S+)$", MAKEFILE, re.MULTILINE)[1]
    texts = [DOCKERFILE, WHEELS["before-build"], WHEELS["linux"]["before-test"]]
    texts += [path.read_text(encoding="utf-8") for path in WORKFLOWS]
    for text in texts:
        assert set(re.findall(r"torch==\S+ --index-url \S+", text)) == {f"{torch} --index-url {CPU_INDEX}"}
    for text in (DOCKERFILE, WHEELS["before-build"], (ROOT / "README.md").read_text(encoding="utf-8")):
        assert set(re.findall(r"'(setuptools>=.+?)'", text)) == {SETUPTOOLS}
    (scm,) = [tool for tool in TOOLS if tool.startswith("setuptools-scm")]
    for text in (*PYPROJECT["build-system"]["requires"], *PROJECT["optional-dependencies"]["dev"]):
        assert not text.startswith("setuptools-scm") or text == scm


def test_the_wheel_leaves_torch_out_wherever_it_is_repaired():
    command = WHEELS["linux"]["repair-wheel-command"]
    assert re.findall(r"--exclude '(\S+)'", command) == OF_TORCH


def test_the_pythons_that_are_named_are_those_that_are_tried():
    named = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert PROJECT["requires-python"] == f">={named[0]}"
    (ci,) = [loaded(path) for path in WORKFLOWS if path.stem == "ci"]
    tried = ci["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tried == [named[0], named[-1]]
    assert [name.partition("-")[0] for name in WHEELS["build"]] == [f"cp{v.replace('.', '')}" for v in tried]


def test_addresses_are_of_one_repository():
    home = PROJECT["urls"]["Homepage"]
    assert all(address.startswith(home) for address in PROJECT["urls"].values())
    assert CITATION["repository-code"] == home
    for path in (ROOT / ".github").rglob("*.*"):
        for address in re.findall(r"https://github\.com/[\w-]+/[\w-]+", path.read_text(encoding="utf-8")):
            assert address == home, path
    linked = [address.partition("/main/")[2] for address in PROJECT["urls"].values() if "/main/" in address]
    assert linked == [name for name in linked if (ROOT / name).exists()]
    assert CITATION["license"] == PROJECT["license"]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_github_asks_for(form):
    fields = loaded(form)
    assert {"name", "description", "body"} <= fields.keys()
    for field in fields["body"]:
        assert field["type"] in {"textarea", "input", "dropdown", "markdown", "checkboxes"}
        assert field["attributes"]["label"]


def test_a_bug_comes_with_what_the_doctor_says():
    required = [f["id"] for f in loaded(FORMS[0])["body"] if f["validations"]["required"]]
    assert FORMS[0].stem == "bug"
    assert required == ["what", "doctor"]


def test_the_image_is_checked_by_the_doctor_and_runs_as_nobody_special():
    lines = DOCKERFILE.splitlines()
    user = lines.index("USER fastkto")
    assert user < lines.index("RUN fastkto doctor") < lines.index('ENTRYPOINT ["fastkto"]')
    assert not any(line.startswith("USER") for line in lines[user + 1 :])


def test_the_hooks_are_the_linters_of_make():
    (local,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = {hook["entry"].split()[0].rpartition("/")[2] for hook in local["hooks"]}
    assert entries == set(re.findall(r"^\t\$\(VENV\)/bin/(ruff|mypy|lint-imports)", MAKEFILE, re.MULTILINE))
