"""What is said of a release in several files is the same, and the entry for the scverse list has what it demands."""

import tomllib
from pathlib import Path

import yaml

import scbioformers as bf

ROOT = Path(__file__).parents[1]
DEMANDED = {  # by schema.json of scverse/ecosystem-packages
    "name", "description", "project_home", "documentation_home", "install", "license", "tags", "version", "authors",
}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_entry_of_the_scverse_list():
    entry = yaml.safe_load((ROOT / "meta.yaml").read_text())
    assert set(entry) >= DEMANDED
    assert (entry["name"], entry["license"]) == (PROJECT["name"], PROJECT["license"])
    assert entry["version"] == f"v{bf.__version__}"
    assert entry["install"] == {"pypi": PROJECT["name"]}
    assert len(set(entry["tags"])) == len(entry["tags"]) > 0


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == bf.__version__
    assert f"Version {bf.__version__} " in (ROOT / "README.md").read_text()


def test_workflows_use_extras_and_targets_that_exist():
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if line[:1].isalpha()}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for step in job["steps"]:
                words = step.get("run", "").split("#")[0].split()
                if words[:1] == ["make"]:
                    assert set(words[1:]) <= targets, path.name
                for word in words:
                    extras = word.partition("[")[2].partition("]")[0]
                    assert set(extras.split(",")) - {""} <= set(PROJECT["optional-dependencies"]), path.name
