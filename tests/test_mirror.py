"""Tests mirror the package: each test file names a module, and each module has a test."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, TESTS = ROOT / "lmmkit", ROOT / "tests"
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
ELSEWHERE = ("trust", "plugins", "stored", "support")  # folders that are no mirror of one in the package

# Modules without a test file of their own, and the test that runs them.
TESTED_BY = {
    "__main__": "training/test_signals_stop.py",
    "ablation/schema": "ablation/test_grid.py",
    "ablation/planned_runs": "ablation/test_stage_runs.py",
    "ablation/trial": "commands/experiments/test_ablate.py",
    "attention/sdpa": "attention/test_backends.py",
    "build/device": "training/test_preflight.py",
    "build/model": "test_build.py",
    "build/reference": "training/test_reference.py",
    "build/stage": "test_build.py",
    "build/teachers": "training/test_reference_teachers.py",
    "chat_page/guard": "chat_page/test_app.py",
    "cost_estimate/checkpoint_size": "test_cost_estimate.py",
    "cost_estimate/stage_cost": "test_cost_estimate.py",
    "cost_estimate/staged_model": "test_cost_estimate.py",
    "cost_estimate/step_memory": "test_cost_estimate.py",
    "data/convert/image_copies": "data/convert/test_convert_records.py",
    "data/convert/json_writer": "data/convert/test_convert_records.py",
    "data/convert/rows": "data/convert/test_convert_records.py",
    "data/convert/table_columns": "data/convert/test_convert_records.py",
    "data/sources/image_paths": "data/sources/test_records.py",
    "data/sources/joined/object_lists": "data/sources/joined/test_joined_records.py",
    "data/sources/tables/table_schema": "data/sources/tables/test_parquet_records.py",
    "evaluate/answers/schema": "evaluate/answers/test_answers_file.py",
    "evaluate/answers/scorer": "evaluate/questions/test_answering.py",
    "evaluate/answers/uploads": "evaluate/questions/test_answering.py",
    "evaluate/answers/outcome": "evaluate/questions/test_answering.py",
    "evaluate/answers/probe": "evaluate/questions/test_answering.py",
    "evaluate/benchmarks/names": "evaluate/test_run.py",
    "inference/batch_from_ids": "weights/test_decoders.py",
    "inference/kv_cache": "inference/test_generate.py",
    "inference/lmms_eval_manifest": "inference/test_lmms_eval_model.py",
    "inference/token_model": "weights/test_decoders.py",
    "model/connectors/connector": "model/connectors/test_kinds.py",
    "model/connectors/mlp": "model/connectors/test_kinds.py",
    "plan/checks/component_checks": "plan/test_compile_plan.py",
    "plan/checks/loss_checks": "plan/test_compile_plan.py",
    "plan/checks/need_checks": "plan/test_compile_plan.py",
    "plan/checks/reach_checks": "plan/test_compile_plan.py",
    "plan/checks/reducer_checks": "plan/test_compile_plan.py",
    "plan/dry_run/label_checks": "plan/dry_run/test_run.py",
    "plan/dry_run/module_checks": "plan/dry_run/test_run.py",
    "plan/dry_run/rehearsal": "test_testing.py",
    "plan/dry_run/second_process": "plan/dry_run/test_run.py",
    "plan/dry_run/span_checks": "plan/dry_run/test_run.py",
    "plan/dry_run/subject": "plan/dry_run/test_run.py",
    "plan/dry_run/term_checks": "plan/dry_run/test_run.py",
    "plan/dry_run/term_subject": "plan/dry_run/test_run.py",
    "plan/dry_run/token_checks": "plan/dry_run/test_run.py",
    "plan/dry_run/view_checks": "plan/dry_run/test_run.py",
    "plan/dry_run/weight_checks": "plan/dry_run/test_run.py",
    "plan/from_model": "inference/test_load.py",
    "plan/pretrained": "training/test_run_pretrained.py",
    "plan/reference_checks": "training/test_reference.py",
    "plan/shapes": "test_cost_estimate.py",
    "plan/stage_plan": "plan/test_compile_plan.py",
    "plan/teachers": "training/test_reference_teachers.py",
    "plugin_calls/module_calls": "plan/dry_run/test_run.py",
    "plugin_calls/reducer_calls": "plan/dry_run/test_run.py",
    "plugin_calls/term_calls": "plugin_calls/test_guard_in_runs.py",
    "plugin_calls/token_calls": "plan/dry_run/test_run.py",
    "plugin_calls/view_calls": "plan/dry_run/test_run.py",
    "plugin_calls/weight_calls": "plan/dry_run/test_run.py",
    "recipe/field_types": "recipe/test_schema.py",
    "recipe/model": "recipe/test_schema.py",
    "recipe/read": "recipe/test_yaml_tree.py",
    "recipe/source_positions": "recipe/test_yaml_tree.py",
    "recipe/rules/evaluate_rules": "recipe/rules/test_by_key.py",
    "recipe/rules/model_rules": "recipe/rules/test_by_key.py",
    "recipe/rules/names": "recipe/rules/test_by_key.py",
    "recipe/rules/plugin_rules": "recipe/rules/test_by_key.py",
    "recipe/rules/stage_rules": "recipe/rules/test_by_key.py",
    "recipe/stage": "recipe/rules/test_by_key.py",
    "report/quickstart": "test_quickstart.py",
    "report/sections/caveats": "report/test_runs_page.py",
    "report/sections/costs": "report/test_runs_page.py",
    "scenes/biased_report": "scenes/test_biased.py",
    "scenes/folder": "scenes/test_write.py",
    "scenes/records": "scenes/test_write.py",
    "scenes/report": "scenes/test_write.py",
    "training/checkpoint/validate_state": "training/checkpoint/test_write.py",
    "verify_export/comparison": "test_verify_export.py",
    "verify_export/by_lmmkit": "test_verify_export.py",
    "verify_export/by_transformers": "test_verify_export.py",
    "weights/config": "weights/test_decoders.py",
    "weights/end_ids": "weights/export/test_llava_folders.py",
    "weights/export/chat_template_export": "weights/export/test_processor_files.py",
    "weights/lora_checkpoints": "test_import_export.py",
    "weights/name_maps": "weights/test_decoders.py",
}
# Commands are tested by their name on the command line, in these files.
COMMANDS = (
    "test_cli.py",
    "trust/samples.py",
    "test_quickstart.py",
    "commands/test_explain.py",
    "commands/test_bench.py",
    "commands/test_ckpt.py",
    "commands/experiments/test_ablate.py",
    "commands/answers/test_group.py",
    "commands/test_env.py",
)

# Names that several modules may define: verbs of commands, one `app` for each command group, and the methods of
# components, which `plugin_calls` calls.
SEVERAL = {"app", "modules", "needs", "score", "check", "diff", "evaluate", "explain", "fill", "list_", "load", "merge", "read", "show", "train", "verify", "write"}  # fmt: skip


def imported() -> set[str]:
    """Returns the dotted names of everything that tests import from lmmkit."""
    names = set()
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    return names


def test_a_test_file_names_the_module_that_it_tests():
    """`test_NAME.py`, or `test_NAME_ASPECT.py`, is in the folder of module NAME."""
    for path in TESTS.rglob("test_*.py"):
        folder, words = path.relative_to(TESTS).parent, path.stem.split("_")[1:]
        if folder == Path() or folder.parts[0] in ELSEWHERE:
            continue
        names = {(folder / "_".join(words[:n])).as_posix() for n in range(1, len(words) + 1)}
        assert names & MODULES, f"{path.relative_to(ROOT)} names no module in lmmkit/{folder}"


def test_every_module_has_a_test():
    names = imported()
    for module in sorted(MODULES):
        path = Path(module)
        if path.name == "__init__" or path.parts[0] in ("errors", "commands"):
            continue
        own = any((TESTS / path.parent).glob(f"test_{path.name}*.py"))
        if not own and f"lmmkit.{module.replace('/', '.')}" not in names:
            assert module in TESTED_BY, f"no test imports lmmkit/{module}.py"
            assert (TESTS / TESTED_BY[module]).is_file(), TESTED_BY[module]


def test_every_command_is_run_by_a_test():
    text = "".join((TESTS / name).read_text() for name in COMMANDS)
    for path in (PACKAGE / "commands").glob("*.py"):
        if path.stem != "__init__":
            name = {"evaluate": "eval"}.get(path.stem, path.stem)
            assert f'"{name}"' in text, f"no test runs `lmmkit {name}`"


def test_no_public_name_is_defined_in_two_modules():
    """Classes, functions and types; a constant in capitals belongs to its module."""
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            else:
                continue
            for name in names:
                if not name.startswith("_") and not name.isupper():
                    places[name].append(path.relative_to(ROOT).as_posix())
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in SEVERAL}
    assert not twice
