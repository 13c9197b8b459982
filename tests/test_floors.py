"""The layout that a machine can check: directions of imports, names of files, who may import what."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lmmkit"

# The files and folders of each package in the order in which they may import: each only from those before it.
FLOORS: dict[str, str] = {
    "lmmkit": """
        errors memory_faults majority progress attention api plugin_calls runs scenes recipe registry data model weights plan testing objective build
        optimizers cost_estimate attention_benchmark inference import_export show_model verify_export evaluate training plugin_costs ablation report
        demo chat_page commands
        cli __main__
    """,
    "lmmkit.ablation": """
        schema grid arms planned_runs stage_runs store trial forecast intervals results summary table board
    """,
    "lmmkit.api": """
        model_info plugin_files puzzle sample layout needs batch pairing ctx components
    """,
    "lmmkit.attention": """
        forest interface key_maps schedule merge eager sdpa flash xformers_backend trial backends
    """,
    "lmmkit.build": """
        device model teachers reference stage
    """,
    "lmmkit.chat_page": """
        session guard app serve
    """,
    "lmmkit.commands": """
        support bench chat check ckpt data diff env evaluate answers experiments explain model plugins quickstart
        recipes train
    """,
    "lmmkit.commands.experiments": """
        job_queue grid_work emit process_trial apart planning ablate runs report demo
    """,
    "lmmkit.commands.answers": """
        group
    """,
    "lmmkit.commands.support": """
        progress_display table_layout common chat_lines data_convert data_check data_stats stats_tables token_pieces jobs further_templates
        plugin_templates quickstart_display
    """,
    "lmmkit.cost_estimate": """
        staged_model step_memory checkpoint_size stage_cost
    """,
    "lmmkit.data": """
        image_markers tables image_files fits images micro_batch packing sampler length_grouping rank_shares sources convert text_tokenizers
        layout_writer chat_templates views pipeline step_transfer loader
    """,
    "lmmkit.data.convert": """
        source_kind rows image_copies json_writer shard_writer table_columns table_writer convert_records
    """,
    "lmmkit.data.fits": """
        tiles native rows
    """,
    "lmmkit.data.image_files": """
        upright data_addresses image_file
    """,
    "lmmkit.data.micro_batch": """
        laid_out labels need_rows packed_images
    """,
    "lmmkit.data.sources": """
        other_samples bad_records image_paths json_stream index_cache json_records record_keys record_parser messages_records indexed_records
        llava_json tables joined tar_members webdataset_shards records
    """,
    "lmmkit.data.sources.joined": """
        known_files object_lists coco_images official_forms joined_records
    """,
    "lmmkit.data.sources.tables": """
        patterns table_names table_schema parquet_records
    """,
    "lmmkit.data.tables": """
        arrow_batches table_file
    """,
    "lmmkit.data.text_tokenizers": """
        offsets sentencepiece_tokenizer added_tokens hf_tokenizer tiktoken_tokenizer choose
    """,
    "lmmkit.demo": """
        image demo_run
    """,
    "lmmkit.errors": """
        ablation answers benchmarks commands data dry_run judge plan recipe report training weights
    """,
    "lmmkit.evaluate": """
        keep task controls stats bootstrap official_files vqa_text group_means option_letters judge benchmarks
        answers questions restore terms kinds run
    """,
    "lmmkit.evaluate.benchmarks": """
        benchmark gqa llava_wild mm_vet mmbench mme mmmu pope scienceqa seed textvqa vizwiz vqav2 names
    """,
    "lmmkit.evaluate.answers": """
        schema groups answers_file scorer uploads probe outcome locate foreign score compare choose published
    """,
    "lmmkit.evaluate.questions": """
        matching asking alone attention_file puzzles_file answering questions_task benchmark_task
    """,
    "lmmkit.inference": """
        batch_from_ids kv_cache generate token_model text_stream chat_model image_attention conversation record_scores
        load lmms_eval_manifest lmms_eval_model
    """,
    "lmmkit.model": """
        cross_entropy step_terms init cpu_ops layers rope decoder transforms vision timm_vit connectors image_rows vlm
        teacher teacher_model reference
    """,
    "lmmkit.model.connectors": """
        connector mlp squares pixel_shuffle average_pool resampler kinds
    """,
    "lmmkit.model.transforms": """
        compiled frozen_bf16 lora recompute
    """,
    "lmmkit.plan": """
        instances shapes from_model pretrained stage_plan checks teachers compile_plan prepare reference_checks map_sizes
        notices explain
        dry_run
    """,
    "lmmkit.plan.checks": """
        token_checks need_checks component_checks loss_checks reducer_checks image_checks reach_checks
    """,
    "lmmkit.plan.dry_run": """
        subject drawn module_checks token_checks label_checks span_checks view_checks
        term_subject term_checks weight_checks reducer_checks run rehearsal second_process
    """,
    "lmmkit.plugin_calls": """
        guard devices forms source module_calls token_calls view_calls term_calls weight_calls reducer_calls
    """,
    "lmmkit.recipe": """
        field_types model shipped source_positions stage schema rules write diff yaml_tree
        error_messages read
    """,
    "lmmkit.recipe.rules": """
        names model_rules data_rules plugin_rules stage_rules evaluate_rules by_key
    """,
    "lmmkit.report": """
        quickstart train_summary wording page loaded_run asked image_shelf sections runs_page grid_page span_text
        trained_samples data_page write_page
    """,
    "lmmkit.report.sections": """
        puzzles measures costs caveats summary accuracy training samples setup
    """,
    "lmmkit.runs": """
        files metrics run_folder run_lock sessions list_runs
    """,
    "lmmkit.scenes": """
        scene captions draw questions records folder report tokenizer write priors texts world biased_report
        biased
    """,
    "lmmkit.training": """
        distributed signals triggers checkpoint first_pass step monitoring run_context save_models resume
        stage_data validation stage_loop main_guard reference preflight run
    """,
    "lmmkit.training.checkpoint": """
        manifest rng tensor_files read frozen_weights state_dict validate_state disk_space write
        saver
    """,
    "lmmkit.training.distributed": """
        process_group fsdp
    """,
    "lmmkit.training.monitoring": """
        anomalies determinism empty_terms image_logging metrics_log board null_logger stage_progress out_of_memory
        unreached_parts
    """,
    "lmmkit.verify_export": """
        comparison by_transformers by_lmmkit
    """,
    "lmmkit.weights": """
        config tensor_reader tensor_writer model_folder end_ids name_maps decoders encoders lora_checkpoints timm_encoder
        pretrained_folder detect left_out weights_hash export
    """,
    "lmmkit.weights.export": """
        export_model chat_template_export peft_adapter processor_files llava_folders
    """,
}
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_FILES = 14  # in one folder
TORCH_FREE = (
    "lmmkit.api.sample",
    "lmmkit.api.layout",
    "lmmkit.api.model_info",
    "lmmkit.errors",
    "lmmkit.recipe",
    "lmmkit.cli",
    "lmmkit.evaluate.benchmarks.names",
    "lmmkit.evaluate.answers.score",
    "lmmkit.evaluate.answers.compare",
)
# Public names that several modules may define: verbs whose module says of what.
SHARED_NAMES = {"app"}


@cache
def parsed(path: Path) -> tuple[ast.AST, ...]:
    """Returns all nodes of a file."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> frozenset[str]:
    """Returns every module or name that a file imports, as dotted names."""
    found = set()
    for node in parsed(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def module(path: Path) -> str:
    """Returns the dotted name of a file; that of a package for its `__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def children(package: str) -> set[str]:
    """Returns the names of the files and folders of a package."""
    folder = ROOT / package.replace(".", "/")
    return {p.stem for p in folder.iterdir() if (p.suffix == ".py" or (p / "__init__.py").is_file())} - {
        "__init__"
    }


def test_every_file_has_its_place():
    packages = {module(path) for path in FILES if path.name == "__init__.py"}
    assert packages == set(FLOORS)
    for package, order in FLOORS.items():
        assert sorted(order.split()) == sorted(children(package)), package


def climbs(path: Path) -> Iterator[str]:
    """Yields the imports of a file that come from its own floor or a later one."""
    own = module(path).split(".")
    for name in imports(path):
        other = name.split(".")
        if other[0] != "lmmkit":
            continue
        depth = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
        if depth is None:  # the file itself, or what is below or above it
            continue
        order = FLOORS[".".join(own[:depth])].split()
        if (
            own[depth] in order
            and other[depth] in order
            and order.index(other[depth]) >= order.index(own[depth])
        ):
            yield f"{module(path)} imports {name}"


def test_a_file_imports_only_from_floors_before_its_own():
    assert not [each for path in FILES for each in climbs(path)]


def test_no_folder_is_large():
    for package in FLOORS:
        files = list((ROOT / package.replace(".", "/")).glob("*.py"))
        assert len([path for path in files if path.name != "__init__.py"]) <= MOST_FILES, package


def test_no_file_takes_the_name_of_a_builtin_or_of_a_package_in_use():
    used = {name.split(".")[0] for path in FILES for name in imports(path)} - {"lmmkit"}
    for path in FILES:
        assert path.stem not in (used | set(dir(builtins))) - {"__init__", "__main__"}, path


def test_scenes_uses_nothing_of_ours_but_errors_and_the_majority_baseline():
    for path in (PACKAGE / "scenes").rglob("*.py"):
        ours = {".".join(name.split(".")[:2]) for name in imports(path) if name.startswith("lmmkit.")}
        assert ours <= {"lmmkit.scenes", "lmmkit.errors", "lmmkit.majority"}, path


def test_the_attention_knows_torch_only():
    for path in (PACKAGE / "attention").rglob("*.py"):
        ours = {".".join(name.split(".")[:2]) for name in imports(path) if name.startswith("lmmkit.")}
        assert ours <= {"lmmkit.attention"}, path


def test_these_modules_are_imported_without_torch():
    """Imports one after the other; if none brings torch along, none does alone."""
    code = "\n".join(f"import {name}; assert 'torch' not in sys.modules, '{name}'" for name in TORCH_FREE)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_plugin_imports_nothing_of_ours_but_the_api(path):
    ours = {name.rpartition(".")[0] for name in imports(path) if name.split(".")[0] == "lmmkit"}
    assert ours <= {"lmmkit.api"}


def test_the_paper_s_parts_are_at_most_two_hundred_lines():
    lines = 0
    for path in (path for path in PLUGINS if path.parent.name not in ("lmmkit_zoo", "lmmkit_trackio")):
        tree = ast.parse(path.read_text())
        words = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node) is not None
            ):
                words |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        text = path.read_text().splitlines()
        lines += sum(1 for i, line in enumerate(text, 1) if line.strip() and i not in words)
    assert lines <= 200, lines


PUBLIC = """
    AttnMass AttnTo AuxTask Batch Ctx Dims ExtraView HiddenAt HiddenMean Image ImageReducer ImageSpec Insert LearnedTokens
    LogProb LogSumExp Loss Metric Puzzle Ragged RowLoss Sample Select StepTerm TeacherAt TokenStrategy TokenWeight Turn
    View VisionAt hookimpl
"""


def test_the_public_names_for_plugins_are_frozen():
    """Lists what a plugin for API 2 may import: names are added, and never removed within a version."""
    import lmmkit.api
    from lmmkit.api.components import API, CHANGES

    assert API == 2 and max(CHANGES) == API
    assert PUBLIC.split() == lmmkit.api.__all__ == sorted(lmmkit.api.__all__)
    assert all(hasattr(lmmkit.api, name) for name in lmmkit.api.__all__)


def test_the_top_level_stays_small():
    import lmmkit

    assert len(lmmkit.__all__) <= 15


def test_only_its_backend_imports_xformers_and_only_weights_knows_families():
    for path in FILES:
        if path.name != "xformers_backend.py":
            assert not any(name.split(".")[0] == "xformers" for name in imports(path)), path
        # chat templates have the public names of families, such as LLAMA3
        if path.relative_to(PACKAGE).parts[0] != "weights" and path.name != "chat_templates.py":
            names = {n.id for n in parsed(path) if isinstance(n, ast.Name)}
            names |= {n.name for n in parsed(path) if isinstance(n, ast.ClassDef | ast.FunctionDef)}
            for family in ("llama", "qwen", "siglip", "vicuna"):
                assert not any(name.lower().startswith(family) for name in names), (path, family)


def test_an_extra_is_imported_only_where_it_is_named():
    for path in FILES:
        whole = parsed(path)[0]
        assert isinstance(whole, ast.Module)
        named = {name.split(".")[0] for node in whole.body for name in _imported(node)}
        assert not named & {"bitsandbytes", "wandb", "scipy", "statsmodels", "pyarrow", "openpyxl"}, path
        assert path.parent.name == "chat_page" or not named & {"starlette", "uvicorn"}, path


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_help_imports_no_torch():
    import subprocess
    import sys

    code = "import sys; from lmmkit.cli import app; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
