import json

import pytest

from experiments.steps import Outcome, Run, chain
from kd.errors import InputError

CONFIG = "out: here\nseed: 0\nfit: {lr: 0.1}\n"


class Work:
    """Steps that count how often they run."""

    def __init__(self, out, config=CONFIG):
        self.out, self.config, self.ran = out, config, []

    def run(self, fail_at=None):
        self.ran = []
        run = Run(self.out, self.config, "python -m something")
        for name in ("teacher", "search", "stages/01-prune", "report"):

            def work(folder, name=name):
                self.ran.append(name)
                (folder / "half").write_text("")
                if name == fail_at:
                    raise KeyboardInterrupt
                (folder / "model").write_text(name)
                return Outcome("kind", notes=("a note",), details={"x": 1})

            run.step(name, work)
        return self.ran


def test_what_is_done_is_skipped(tmp_path):
    work = Work(tmp_path / "run")
    assert work.run() == ["teacher", "search", "stages/01-prune", "report"]
    assert work.run() == []


def test_a_removed_folder_runs_again_with_all_that_follow(tmp_path):
    import shutil

    work = Work(tmp_path / "run")
    work.run()
    (work.out / "stages/01-prune/stale").write_text("")
    shutil.rmtree(work.out / "search")
    assert work.run() == ["search", "stages/01-prune", "report"]
    assert not (work.out / "stages/01-prune/stale").exists()
    assert work.run() == []


def test_an_interrupted_step_goes_on_in_its_folder(tmp_path):
    work = Work(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        work.run(fail_at="search")
    (work.out / "search/checkpoint").write_text("")
    assert work.run() == ["search", "stages/01-prune", "report"]
    assert (work.out / "search/checkpoint").exists()


def test_the_chain_holds_the_finished_steps_in_order(tmp_path):
    work = Work(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        work.run(fail_at="stages/01-prune")
    assert [step["name"] for step in chain(work.out)] == ["teacher", "search"]
    work.run()
    steps = chain(work.out)
    assert [step["name"] for step in steps] == ["teacher", "search", "stages/01-prune", "report"]
    assert steps[0]["notes"] == ["a note"]
    assert steps[0]["seconds"] >= 0


def test_another_configuration_is_refused_by_the_field_that_differs(tmp_path):
    Work(tmp_path / "run").run()
    with pytest.raises(InputError, match=r"^fit\.lr: 0\.2: .*0\.1"):
        Work(tmp_path / "run", CONFIG.replace("0.1", "0.2")).run()
    moved = Work(tmp_path / "run", CONFIG.replace("here", "there"))  # a folder may be moved
    assert moved.run() == []


def test_the_command_and_the_environment_are_kept(tmp_path):
    Work(tmp_path / "run").run()
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["command"] == "python -m something"
    assert "torch" in json.dumps(environment)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis").write_text("")
    with pytest.raises(InputError, match="holds no run"):
        Work(tmp_path / "run").run()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis"]


@pytest.mark.parametrize("name", ["config.yaml", "search/step.json"])
@pytest.mark.parametrize("content", ["3", "{", "", '{"after": ""}', "[:"])
def test_a_record_that_was_altered_is_refused_by_its_name(name, content, tmp_path):
    work = Work(tmp_path / "run")
    work.run()
    (work.out / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}|: the run in"):
        work.run()
    assert (work.out / "search/model").read_text() == "search"
