"""Plain lm_eval knows the model and the tasks, whatever is imported first."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from moe_eval import _startup
from moe_eval.harness import plugin
from tests.install.conftest import Environment, make

FIRST_IMPORTS = {
    "registry": "import lm_eval.api.registry",
    "models": "import lm_eval.models",
    "evaluator": "import lm_eval.evaluator",
    "tasks": "import lm_eval.tasks",
    "adapter": "import moe_eval.harness.model",
    "plugin": "import moe_eval.harness.plugin",
    "built-in model": "import lm_eval.models.dummy",
}
RESOLVE = """
import json
from lm_eval.api.registry import get_model, model_registry
found = {name: f"{(c := get_model(name)).__module__}:{c.__name__}" for name in ("trtllm_moe", "hf", "dummy")}
found["vllm"] = str(model_registry._objs["vllm"])
print(json.dumps(found))
"""


def last_json(output: str) -> dict[str, str]:
    content: dict[str, str] = json.loads(output.strip().splitlines()[-1])
    return content


# they take seconds to import, and no order is about them
FORKS = """
import json, os, sys
import torch, transformers.models.auto.modeling_auto, accelerate, datasets, sacrebleu, sklearn.metrics, sqlitedict
for code in json.loads(sys.argv[1]):
    if os.fork() == 0:
        exec(code, {})
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0
"""


def check_models(models: dict[str, str]) -> None:
    assert models["trtllm_moe"] == "moe_eval.harness.model:MoeLM"
    assert models["hf"] == "lm_eval.models.huggingface:HFLM"
    assert models["dummy"] == "lm_eval.models.dummy:DummyLM"
    assert "lm_eval.models.vllm_causallms" in models["vllm"]


@pytest.fixture(scope="module")
def models_by_order(from_wheel: Environment) -> dict[str, dict[str, str]]:
    """What names resolve to, by what was imported first, in a process of its own each."""
    codes = [first + RESOLVE for first in FIRST_IMPORTS.values()]
    done = from_wheel.run("-c", FORKS, json.dumps(codes))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(FIRST_IMPORTS, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("first", FIRST_IMPORTS)
def test_models_resolve_in_any_import_order(models_by_order: dict[str, dict[str, str]], first: str) -> None:
    check_models(models_by_order[first])


def test_models_resolve_in_an_editable_install(from_source: Environment) -> None:
    done = from_source.run("-c", FIRST_IMPORTS["registry"] + RESOLVE)
    assert done.returncode == 0, done.stderr
    check_models(last_json(done.stdout))


# the harness reads 14,000 task files for every TaskManager; here those of one task of its own suffice
FEW_TASKS = """
from pathlib import Path
from lm_eval.tasks import _index
build = _index.TaskIndex.build
few = lambda paths: [path / "wikitext" if path.match("lm_eval/tasks") else path for path in map(Path, paths)]
_index.TaskIndex.build = staticmethod(lambda paths, **options: build(few(paths), **options))
"""


def test_tasks_are_found_beside_a_users_own(installed: Environment, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: json\noutput_type: loglikelihood\n")
    code = (
        f"{FEW_TASKS}\n"
        "import json, sys\n"
        "from lm_eval.tasks import TaskManager\n"
        "found = TaskManager(include_path=sys.argv[1], include_defaults=True)\n"
        "alone = TaskManager(include_path=sys.argv[1], include_defaults=False)\n"
        "ours = {'moe_sample', 'wikitext_local', 'wikitext', 'mine'}\n"
        "print(json.dumps({'all': sorted(ours & set(found.all_tasks)), 'alone': alone.all_tasks}))"
    )
    done = installed.run("-c", code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout) == {"all": ["mine", "moe_sample", "wikitext", "wikitext_local"], "alone": ["mine"]}


def test_the_wheel_holds_the_package_and_no_double_of_an_engine(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "tensorrt_llm" in name or name.startswith("tests/")]
    for needed in ("checkpoint/support.toml", "tasks/moe_sample.yaml", "assets/tiny-qwen3-moe/model.safetensors"):
        assert f"moe_eval/{needed}" in names


def test_uninstalling_leaves_nothing_behind(wheel: Path, tmp_path: Path) -> None:
    environment = make(tmp_path / "env")
    before = {path.name for path in environment.site.iterdir()}
    environment.pip("install", "--no-deps", str(wheel))
    assert (environment.site / "moe_eval.pth").is_file()
    environment.pip("uninstall", "-y", "moe-eval")
    assert {path.name for path in environment.site.iterdir()} == before
    code = (
        "from lm_eval.api.registry import get_model\nget_model('dummy')\n"
        "try:\n    get_model('trtllm_moe')\nexcept ValueError:\n    print('unknown')"
    )
    done = environment.run("-c", code)
    assert done.stdout.strip() == "unknown", done.stderr


def test_the_start_of_python_imports_nothing_of_ours(installed: Environment) -> None:
    done = installed.run("-c", "import sys; print([name for name in sys.modules if name.startswith('moe_eval')])")
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_help_of_lm_eval_imports_no_engine(installed: Environment) -> None:
    done = installed.run("-X", "importtime", "-m", "lm_eval", "--help")
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "moe_eval.harness.plugin" in imported
    assert not imported & {"torch", "transformers", "mlflow", "vllm", "tensorrt_llm"}


def test_silent_without_lm_eval(wheel: Path, tmp_path: Path) -> None:
    environment = make(tmp_path / "env", dependencies=False)
    environment.pip("install", "--no-deps", str(wheel))
    code = "import json\ntry:\n    import lm_eval\nexcept ModuleNotFoundError:\n    print('absent')"
    done = environment.run("-c", code)
    assert (done.stdout.strip(), done.stderr) == ("absent", "")


@pytest.mark.parametrize("broken", ["registry gone", "package gone"])
def test_silent_when_something_has_changed(wheel: Path, tmp_path: Path, broken: str) -> None:
    environment = make(tmp_path / "env", dependencies=False)
    environment.pip("install", "--no-deps", str(wheel))
    package = environment.site / "lm_eval"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models" / "__init__.py").write_text("loaded = True\n")
    if broken == "package gone":
        (environment.site / "moe_eval" / "_startup.py").unlink()
    done = environment.run("-c", "import lm_eval.models; print(lm_eval.models.loaded)")
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_the_portable_form_needs_no_hook(tmp_path: Path) -> None:
    environment = make(tmp_path / "env")
    source = Path(plugin.__file__).resolve().parents[2]
    code = "from lm_eval.api.registry import get_model\nget_model('trtllm_moe')"
    assert environment.run("-c", code, PYTHONPATH=str(source)).returncode != 0
    listing = "import runpy\nrunpy.run_module('moe_eval.harness', run_name='__main__', alter_sys=True)"
    done = environment.run("-c", FEW_TASKS + listing, "ls", "tasks", PYTHONPATH=str(source))
    assert done.returncode == 0, done.stderr
    assert "moe_sample" in done.stdout


def test_the_start_up_hook_watches_what_the_plugin_attaches_to() -> None:
    assert set(plugin.HOOKS) == _startup.WATCHED
