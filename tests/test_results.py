"""Plots and tables: their statistics, what they do with imperfect runs, and that what is committed is current."""

import csv
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import warnings

import accelerator
import antmaze
import basics
import candidates
import families
import fetch
import figures
import make
import mechanism
import physics
import pixels
import plot
import published
import runs
import speed
import table
import toy
from common import algorithms, envs
from common.arguments import RunArgs
from common.env_ids import D4RL_MINARI_IDS, resolve
from common.errors import UserError, exit_in_one_line

import matplotlib
import numpy as np
import pytest
from conftest import REPOSITORY, run_script
from toys import CODE, write_run


def edit_config(path: pathlib.Path, change) -> pathlib.Path:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))
    return path


def cell(markdown: str, row: str, column: str) -> str:
    """Of the table in which both occur."""
    lines = [[part.strip() for part in line.split("|")] for line in markdown.splitlines() if line.startswith("|")]
    header = None
    for line in lines:
        if column in line:
            header = line
        elif header and row in (line[1], f"{line[1]} {line[2]}"):
            return line[header.index(column)]
    raise KeyError((row, column))


@pytest.fixture(autouse=True)
def code_as_committed(monkeypatch):
    """Whatever is being edited here."""
    monkeypatch.setattr(algorithms, "code_of", lambda name: CODE)


@pytest.fixture
def markdown(capsys):
    def make(*paths: pathlib.Path) -> str:
        table.main(table.TableArgs(paths))
        return capsys.readouterr().out

    return make


def test_a_score_is_the_mean_of_the_last_three_evaluations_over_seeds(tmp_path, markdown):
    for seed, scores in enumerate([(100, 10, 60, 80), (0, 30, 60, 60), (0, 40, 40, 40)]):
        write_run(tmp_path / str(seed), seed=seed, scores=scores, offline_steps=400)
    text = markdown(tmp_path)
    assert cell(text, "cube-single DROL(16)", "score") == "46.7 ± 5.8"  # of 50, 50, 40
    assert cell(text, "cube-single DROL(16)", "seeds") == "3"
    assert cell(text, "cube-single DROL(16)", "updates to 50") == "300"  # the mean: 33, 27, 53, 60
    assert cell(text, "cube-single DROL(16)", "minutes to 50") == "30"
    assert cell(text, "cube-single DROL(16)", "paper, mean of the group") == "97 ± 2"
    assert "official: 1000" in cell(text, "cube-single DROL(16)", "data")


def test_a_group_counts_only_with_all_of_its_tasks(tmp_path, markdown):
    for seed in (0, 1):
        for number in (1, 3, 4, 5):
            name = f"cube-double-task{number}"
            write_run(tmp_path / f"{name}-{seed}", name, seed=seed, scores=(0, 0, 30 * number + 3 * seed))
    assert cell(markdown(tmp_path), "ogbench/cube-double", "DROL(16)") == "4 of 5 tasks"
    again = write_run(tmp_path / "x", "cube-double-task1", seed=7)  # another seed is not another task
    assert cell(markdown(tmp_path), "ogbench/cube-double", "DROL(16)") == "4 of 5 tasks"
    shutil.rmtree(again)
    for seed in (0, 1):
        write_run(tmp_path / f"default-{seed}", "cube-double", seed=seed, scores=(0, 0, 60 + 3 * seed))
    # Tasks 10, 20 (the default one), 30, 40, 50 with seed 0, one more with seed 1: 30 and 31.
    assert cell(markdown(tmp_path), "ogbench/cube-double", "DROL(16)") == (
        "30.5 ± 0.7 (2 seeds, 300 updates, 50 episodes, data: collected)"
    )
    assert cell(markdown(tmp_path), "ogbench/cube-double", "FQL") == "not run"
    assert cell(markdown(tmp_path), "ogbench/scene", "DROL(16)") == "not run"


def test_other_settings_have_a_column_once_they_have_a_whole_group(tmp_path, markdown):
    for number in (1, 2, 3, 4):
        write_run(tmp_path / str(number), f"cube-double-task{number}", tau=0.01, scores=(0, 0, 30 * number))
    assert "tau 0.01" not in markdown(tmp_path).partition("**Tasks**")[0]
    write_run(tmp_path / "5", "cube-double-task5", tau=0.01, scores=(0, 0, 150))
    text = markdown(tmp_path)
    whole = "30.0 ± - (1 seed, 300 updates, 50 episodes, data: collected)"
    assert cell(text, "ogbench/cube-double", "DROL(16), tau 0.01") == whole
    assert (
        cell(text, "ogbench/scene", "DROL(16), tau 0.01") == cell(text, "ogbench/cube-double", "DROL(16)") == "not run"
    )


def test_a_default_task_is_known_under_both_names(tmp_path):
    a = write_run(tmp_path / "a", "scene", seed=0)
    b = write_run(tmp_path / "b", "scene-task2", seed=1)
    comparison = runs.read([a, b])
    assert {task: len(members["DROL(16)"]) for task, members in comparison.tasks.items()} == {"scene": 2}


@pytest.mark.parametrize("env_id", ["cube-single", "scene", "puzzle-3x3", "puzzle-4x6", "pointmaze-medium"])
@pytest.mark.slow(2)
def test_default_tasks_are_ogbenchs(env_id):
    spec = resolve(env_id)
    env = envs.make_env(spec.gym_id)
    env.reset(seed=0)
    assert env.unwrapped.cur_task_id == spec.task_number
    env.close()


def test_other_data_is_not_set_beside_the_papers(tmp_path, markdown):
    write_run(tmp_path / "a", "cube-single-noisy")
    assert cell(markdown(tmp_path), "cube-single-noisy DROL(16)", "paper, mean of the group") == "-"
    assert cell(markdown(tmp_path), "ogbench/cube-single", "DROL(16)") == "not run"


def test_formats_agree(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", seed=0)
    table.main(table.TableArgs((tmp_path / "runs",), tmp_path / "out" / "t"))
    assert cell((tmp_path / "out" / "t.md").read_text(), "cube-single DROL(16)", "score") == "50.0 ± -"
    rows = list(csv.DictReader((tmp_path / "out" / "t.csv").open()))
    assert {"table": "Tasks", "row": "cube-single / DROL(16)", "column": "score", "value": "50.0 ± -"} in rows
    latex = (tmp_path / "out" / "t.tex").read_text()
    assert latex.count("\\toprule") == 2
    assert "50.0 ± -" in latex


def test_published_scores_are_the_papers():
    scores = published.published_scores()
    assert scores["ogbench/puzzle-3x3", "DROL(16)"] == (41.0, 9.0)
    assert scores["d4rl/antmaze", "FQL"][0] == 84
    assert sum(published.num_tasks().values()) == 68


# Runs that are not as they should be: named, and plotted where that makes sense.


@pytest.mark.slow(1)
def test_imperfect_runs_are_named_and_the_rest_is_shown(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / f"good-{seed}", seed=seed)
    write_run(tmp_path / "half", seed=2, scores=(10, 60))
    write_run(tmp_path / "started", seed=3, scores=())
    (write_run(tmp_path / "cut", seed=4) / "eval.csv").write_text("step,evaluation/success\n100,20\n200,zz\n300,50\n")
    (write_run(tmp_path / "damaged", seed=5) / "config.json").write_text('{"algorithm": "drol"')
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "twice", seed=1, scores=(10, 20))
    (write_run(tmp_path / "no-score", seed=6) / "eval.csv").write_text("step,evaluation/fun\n300,50\n")
    (write_run(tmp_path / "infinite", seed=7) / "eval.csv").write_text("step,evaluation/success\n200,nan\n300,inf\n")
    (write_run(tmp_path / "folder", seed=8) / "eval.csv").unlink()
    (tmp_path / "folder" / "eval.csv").mkdir()
    (write_run(tmp_path / "no-time", seed=9, scores=(10,)) / "time.csv").write_text("step,minutes\n100,3\n")
    edit_config(write_run(tmp_path / "no-seed", seed=10), lambda config: config["args"].pop("seed"))
    edit_config(write_run(tmp_path / "no-sizes", seed=11), lambda config: config["args"].pop("hidden_sizes"))
    edit_config(write_run(tmp_path / "odd-suite", seed=12), lambda config: config["environment"].update(suite="x"))
    edit_config(write_run(tmp_path / "odd-env", seed=13), lambda config: config["environment"].update(env_name="x"))
    edit_config(write_run(tmp_path / "no-episodes", seed=14), lambda config: config["dataset"].pop("episodes"))
    reasons = {
        "half": "unfinished, no score",
        "started": "no evaluation yet",
        "cut/eval.csv": "row 2 is damaged",
        "damaged": "config.json is damaged",
        "empty": "not a run directory",
        "twice": "has the seed and settings of",
        "no-score": "is damaged",
        "infinite": "no finite evaluation",
        "folder": "Is a directory",
        "no-time": "is damaged",
        "no-seed": "is damaged",
        "no-sizes": "is damaged",
        "odd-suite": "is damaged",
        "odd-env": "is damaged",
        "no-episodes": "is damaged",
    }
    plot.main(plot.PlotArgs((tmp_path, tmp_path / "good-0", tmp_path / "missing"), tmp_path / "figure"))
    named = capsys.readouterr().err.splitlines()
    for name, reason in {**{f"{tmp_path.name}/{name}": reason for name, reason in reasons.items()}}.items():
        assert any(name in line and reason in line for line in named), (name, reason, named)
    assert any("missing" in line for line in named)
    assert not any("good" in line for line in named if "twice" not in line), named
    for ending in (".png", ".pdf"):
        assert (tmp_path / "figure").with_suffix(ending).stat().st_size > 5000
    assert "is damaged" in (tmp_path / "figure.md").read_text()
    table.main(table.TableArgs((tmp_path,)))
    assert cell(capsys.readouterr().out, "cube-single DROL(16)", "seeds") == "2"  # the two that are finished


def test_an_unfinished_seed_does_not_cut_the_others_short(tmp_path, markdown):
    for seed in (0, 1):
        write_run(tmp_path / f"{seed}", seed=seed)
    write_run(tmp_path / "2", seed=2, scores=(10,))
    assert cell(markdown(tmp_path), "cube-single DROL(16)", "updates to 50") == "200"
    axes = plot.draw(runs.read([tmp_path]), "updates").axes[0]
    means = [line for line in axes.lines if line.get_label() == "DROL(16)"]
    np.testing.assert_allclose(means[0].get_xydata(), [[0.1, 10], [0.2, 60], [0.3, 80]])


def test_what_all_methods_share_is_in_the_title_and_not_in_the_legend(tmp_path):
    for q_coef in (1.0, 3.0):
        write_run(tmp_path / f"{q_coef}", tau=0.1, q_coef=q_coef)
    write_run(tmp_path / "fql", algorithm="fql", tau=0.1)
    comparison = runs.read([tmp_path])
    assert comparison.title == "tau 0.1; offline_steps 300; hidden_sizes 8 8"
    assert [comparison.label(method) for method in comparison.methods] == ["DROL(16)", "DROL(16), q_coef 3", "FQL"]
    texts = [text.get_text() for text in plot.draw(comparison, "updates").findobj(matplotlib.text.Text)]
    assert [text for text in texts if "tau" in text] == [comparison.title]
    edit_config(tmp_path / "fql", lambda config: config["code"][0].update(modified=True))
    modified = runs.read([tmp_path / "fql"])
    assert modified.label(*modified.methods) == "FQL, modified"  # which no title takes from a name


def test_the_papers_line_is_where_its_whole_group_is(tmp_path):
    def draws_the_papers() -> bool:
        figure = plot.draw(runs.read([tmp_path]), "updates")
        return any(text.get_text().startswith("paper: ") for text in figure.findobj(matplotlib.text.Text))

    for number in range(1, 5):
        write_run(tmp_path / str(number), f"cube-double-task{number}")
    assert not draws_the_papers()
    write_run(tmp_path / "5", "cube-double-task5")
    assert draws_the_papers()


@pytest.mark.parametrize(("columns", "inches"), [(1, 3.3), (2, 6.9)])
def test_a_papers_figure_is_as_wide_as_its_columns_and_holds_its_texts(columns, inches, tmp_path):
    for env_id in ("cube-single", "scene", "antmaze-medium-diverse", "humanoidmaze-medium-task2", "puzzle-3x3"):
        write_run(tmp_path / env_id, env_id)
        write_run(tmp_path / f"fql-{env_id}", env_id, "fql", learning_rate=1e-4)
    figure = plot.draw(runs.read([tmp_path]), "updates", columns)
    assert figure.get_size_inches()[0] == pytest.approx(inches)
    figure.canvas.draw()
    for axes in figure.axes:
        left, right = axes.title.get_window_extent().intervalx
        assert -1 <= left < right <= figure.bbox.width + 1, axes.get_title()


def test_notes_are_beside_the_figure_and_files_are_those_asked_for(tmp_path, capsys):
    write_run(tmp_path / "a")
    plot.main(plot.PlotArgs((tmp_path,), tmp_path / "figure", formats=("svg",)))
    assert {path.name for path in tmp_path.glob("figure.*")} == {"figure.svg", "figure.md"}
    assert "- Data: " in (tmp_path / "figure.md").read_text()
    drawn = (tmp_path / "figure.svg").read_bytes()
    plot.main(plot.PlotArgs((tmp_path,), tmp_path / "figure", formats=("svg",)))
    assert (tmp_path / "figure.svg").read_bytes() == drawn


def test_several_settings_of_one_task_are_said_and_not_called_not_run(tmp_path, markdown):
    for seed in (0, 1):
        write_run(tmp_path / f"{seed}", seed=seed)
        write_run(tmp_path / f"scene-{seed}", "scene", seed=seed)
    write_run(tmp_path / "sweep", hidden_sizes=(4,))
    text = markdown(tmp_path)
    assert cell(text, "ogbench/cube-single", "DROL(16)") == "several settings of cube-single"
    assert cell(text, "cube-single DROL(16), hidden_sizes 4", "paper, mean of the group") == "97 ± 2"
    assert list(plot.common_tasks(runs.read([tmp_path]))) == ["scene"]


def test_d4rls_own_files_are_compared_with_the_paper_and_never_averaged_with_minaris(tmp_path, markdown):
    mazes = [name for name in D4RL_MINARI_IDS if name.startswith("antmaze")]
    for number, name in enumerate(mazes):
        write_run(tmp_path / f"d4rl-{name}", f"d4rl-{name}", scores=(10, 20, 30 + number))
    text = markdown(tmp_path)
    assert cell(text, "d4rl/antmaze", "DROL(16)").startswith("32.5 ")  # of each the last evaluation alone
    assert cell(text, "d4rl-antmaze-umaze DROL(16)", "score").startswith("30.0 ")
    assert cell(text, "d4rl-antmaze-umaze DROL(16)", "paper, mean of the group") != "-"
    for name in mazes:
        write_run(tmp_path / name, name)
    text = markdown(tmp_path)
    assert cell(text, "d4rl/antmaze", "DROL(16)").startswith("D4RL's own files and Minari's data")
    assert cell(text, "antmaze-umaze DROL(16)", "score").startswith("80.0 ")


def test_unlike_budgets_are_said(tmp_path, markdown):
    for number in range(1, 6):
        sizes = (8, 8) if number < 5 else (4,)
        write_run(tmp_path / str(number), f"cube-double-task{number}", hidden_sizes=sizes)
    assert cell(markdown(tmp_path), "ogbench/cube-double", "DROL(16)") == "unlike settings"
    write_run(tmp_path / "fql", "cube-double-task5", "fql", offline_steps=400, scores=(1, 2, 3, 4))
    notes = runs.read([tmp_path]).notes
    assert any("unlike in cube-double-task5: offline_steps 300 (DROL(16)), 400 (FQL)" in note for note in notes)


def test_returns_have_no_common_scale(tmp_path):
    for env_id in ("cube-single", "scene"):
        write_run(tmp_path / env_id, env_id)
    path = write_run(tmp_path / "hopper", "toys/hopper/random-v0")
    (path / "eval.csv").write_text("step,evaluation/return\n300,3000\n")
    comparison = runs.read([tmp_path])
    assert set(plot.common_tasks(comparison)) == {"cube-single", "scene"}
    assert "3000.0 ± - (return)" in table.to_markdown([table.task_table(comparison, 50)], [])


def test_runs_on_other_data_are_not_averaged(tmp_path):
    a, b = write_run(tmp_path / "a", seed=0), write_run(tmp_path / "b", seed=1)
    edit_config(b, lambda config: config["dataset"].update(sha256="other"))
    assert len(runs.read([a, b]).tasks["cube-single"]) == 2
    edit_config(b, lambda config: config["dataset"].update(sha256="5fd3ce448ef537e5", source="mirror"))
    assert len(runs.read([a, b]).tasks["cube-single"]) == 1


def test_different_settings_are_not_averaged(tmp_path):
    a, b = write_run(tmp_path / "a", seed=0), write_run(tmp_path / "b", seed=1, bc_coef=0.5)
    c = write_run(tmp_path / "c", "cube-single", "fql", seed=0)
    comparison = runs.read([a, b, c])
    assert set(comparison.tasks["cube-single"]) == {"DROL(16)", "DROL(16), bc_coef 0.5", "FQL"}


def test_a_variant_is_named_by_what_is_not_the_papers_and_never_counts_as_the_papers_method(tmp_path, markdown):
    """Also where it is the only one."""
    write_run(tmp_path / "a", bc_coef=0.5, learning_rate=1e-3)
    write_run(tmp_path / "b", "scene", "fql", alpha=300.0)  # which is published
    write_run(tmp_path / "c", "cube-double", num_candidates=4)
    write_run(tmp_path / "d", "puzzle-3x3", drol_star=True)
    edit_config(write_run(tmp_path / "e", "antmaze-large"), lambda config: config["args"].update(num_winners=2))
    text = markdown(tmp_path)
    assert cell(text, "cube-single DROL(16), learning_rate 0.001, bc_coef 0.5", "paper, mean of the group") == "-"
    assert cell(text, "ogbench/cube-single", "DROL(16)") == "not run"
    assert cell(text, "scene FQL", "score") and cell(text, "cube-double DROL(4)", "score")
    assert cell(text, "puzzle-3x3 DROL*", "paper, mean of the group") != "-"
    assert cell(text, "antmaze-large DROL(16), num_winners 2", "paper, mean of the group") == "-"
    assert "not the paper's size: offline_steps 300, hidden_sizes 8 8 (antmaze-large, cube-double," in text


def test_a_run_whose_script_is_not_here_is_shown_by_its_name(tmp_path, markdown):
    edit_config(write_run(tmp_path / "a"), lambda config: config.update(algorithm="rebrac"))
    text = markdown(tmp_path)
    assert cell(text, "cube-single rebrac", "score") == "50.0 ± -"
    assert "there is no rebrac.py here" in text


def test_names_are_shown_as_they_are_in_figures_and_tables(tmp_path, capsys):
    """As far as fonts, terminals and files have them."""
    plain = ["x$\\lr$_1", "$\\frac{", "50% & #1_\\", "实验"]
    coded = {"two\nlines\x1b[31m": r"two\nlines\x1b[31m", os.fsdecode(b"not \xff text"): r"not \udcff text"}
    for seed, name in enumerate([*plain, *coded]):
        write_run(tmp_path / name, seed=seed, scores=(10, 60))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot.main(plot.PlotArgs((tmp_path,), out=tmp_path / "figure"))
    table.main(table.TableArgs((tmp_path,), out=tmp_path / "table"))
    err = capsys.readouterr().err
    for name in (*plain, *coded.values()):
        note = f"unfinished, no score: {tmp_path.name}/{name} (cube-single, "
        assert f"- {note}" in (tmp_path / "table.md").read_text("utf-8")
        assert f"% {note}" in (tmp_path / "table.tex").read_text("utf-8")
        assert note in err


@pytest.mark.slow(2)
def test_output_need_not_be_utf_8(tmp_path, monkeypatch):
    """What it lacks is written by its code; files are UTF-8 whatever it is."""
    run, variables = write_run(tmp_path / "läuft"), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    output = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", output)
    exit_in_one_line(lambda: table.main(table.TableArgs((run,))))
    output.seek(0)
    assert r"50.0 \xb1 -" in output.read()
    result = run_script(run, "--out", tmp_path / "table", script="results/table.py", variables=variables)
    assert result.returncode == 0, result.stderr
    assert "50.0 ± -" in (tmp_path / "table.md").read_text("utf-8")


@pytest.mark.slow(3)
def test_nothing_to_show_is_one_line(tmp_path):
    result = run_script(tmp_path, script="results/plot.py")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "nothing to show" in result.stderr
    with pytest.raises(UserError, match="not a run directory"):
        runs.read([tmp_path])


def test_the_legend_stays_within_the_figure(tmp_path):
    paths = [
        write_run(tmp_path / "k16", num_candidates=16),
        write_run(tmp_path / "star", num_candidates=4, bc_coef=0.03),
        write_run(tmp_path / "fql", algorithm="fql"),
        write_run(tmp_path / "many", learning_rate=1e-4, batch_size=32, tau=0.1, q_coef=3.0, critic_num_candidates=7),
    ]
    figure = plot.draw(runs.read(paths), "updates")
    figure.canvas.draw()
    (legend,) = (legend for part in figure.subfigs for legend in part.legends)
    left, right = legend.get_window_extent().intervalx
    assert 0 <= left < right <= figure.bbox.width


def test_single_seeds_have_no_interval_and_several_tasks_have_statistics(tmp_path, capsys):
    for algorithm in ("drol", "fql"):
        for env_id in ("cube-single", "scene"):
            write_run(tmp_path / f"{algorithm}-{env_id}", env_id, algorithm)
    figure = plot.draw(runs.read([tmp_path]), "updates")
    titles = {axes.get_title() for axes in figure.axes}
    assert {"cube-single", "scene", "interquartile mean", "profile of scores"} <= titles
    for few in ([[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]):
        assert np.isnan(plot.confidence_interval(np.array(few), "evaluation/return")).all()


# Statistics


def test_the_interval_over_seeds_is_students():
    low, high = plot.confidence_interval(np.array([[1.0], [2.0], [3.0]]), "evaluation/return")
    half = 4.302653 * 1 / np.sqrt(3)  # t of 2 degrees of freedom at 97.5 %, deviation 1
    np.testing.assert_allclose([low[0], high[0]], [2 - half, 2 + half], rtol=1e-6)
    low, high = plot.confidence_interval(np.array([[1.0], [50.0], [99.0]]), "evaluation/success")
    assert (low[0], high[0]) == (0, 100)  # nothing beyond is possible


def test_what_was_not_run_is_said_once_and_zeros_are_seen(tmp_path):
    for algorithm, env_id in (("drol", "cube-single"), ("drol", "scene"), ("fql", "cube-single")):
        write_run(tmp_path / f"{algorithm}-{env_id}", env_id, algorithm, scores=(0, 0, 0))
    figure = plot.draw(runs.read([tmp_path]), "updates", notes=True)
    texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert sum("not run" in text.lower() for text in texts) == 1
    assert any("Not run: FQL: scene." in text for text in texts)
    (curves,) = [axes for axes in figure.axes if axes.get_title() == "cube-single"]
    under, over = [line for line in curves.get_lines() if line.get_label() in ("DROL(16)", "FQL")]
    np.testing.assert_array_equal(under.get_ydata(), over.get_ydata())
    assert under.get_linewidth() > over.get_linewidth() and under.get_markersize() > over.get_markersize()


def test_interquartile_mean_and_profile():
    scores = [np.array([0.0, 10.0, 20.0, 30.0]), np.array([40.0, 50.0, 60.0, 100.0])]
    assert plot.interquartile_mean(*scores, axis=-1) == 35  # of 20, 30, 40, 50
    profile = plot.performance_profile(np.array([0.0, 25.0, 100.0]))(*scores, axis=-1)
    np.testing.assert_allclose(profile, [100 * (0.75 + 1) / 2, 100 * (0.25 + 1) / 2, 0])


def test_the_bootstrap_is_stratified():
    # Seeds agree within each task: drawing them anew changes nothing, unless tasks were mixed.
    scores = [np.full(3, 10.0), np.full(3, 90.0)]
    low, high = plot.bootstrap(scores, plot.interquartile_mean)
    assert low == high == 50
    low, high = plot.bootstrap([np.array([0.0, 10.0, 20.0]), np.full(3, 90.0)], plot.interquartile_mean)
    assert low < plot.interquartile_mean(np.array([0.0, 10.0, 20.0]), np.full(3, 90.0), axis=-1) < high


@pytest.mark.parametrize("recipe", [{"episode_steps": 1001, "oracle": "scripted"}, {"policy": "door.npz, SHA-256 0"}])
def test_data_collected_again_by_the_same_recipe_is_the_same_data_and_is_named(recipe, tmp_path, markdown):
    """Another processor rounds a simulation differently: the files differ, the experiment does not."""

    def collected_here(config, sha256, versions):
        config["dataset"] |= recipe | {"versions": versions, "sha256": sha256}

    for seed, sha256, version in ((0, "a" * 64, "1"), (1, "b" * 64, "1"), (2, "c" * 64, "2")):
        path = write_run(tmp_path / str(seed), seed=seed)
        edit_config(path, lambda c, s=sha256, v=version: collected_here(c, s, {"mujoco": v}))
    text = markdown(tmp_path / "0", tmp_path / "1")
    assert cell(text, "cube-single DROL(16)", "seeds") == "2"
    assert "cube-single: the data was collected 2 times by the same recipe (SHA-256 aaaaaa, bbbbbb)" in text
    assert "seed 0 (" in markdown(tmp_path / "0", tmp_path / "2")  # another version's are methods of their own


def test_runs_of_another_physics_are_named_and_not_averaged(tmp_path, markdown):
    for seed, version in enumerate(("3.2.7", "3.1.6", "4.0.0")):
        path = write_run(tmp_path / str(seed), seed=seed)
        edit_config(path, lambda config, version=version: config["versions"].update(mujoco=version))
    assert "MuJoCo" not in markdown(tmp_path / "0", tmp_path / "1")
    text = markdown(tmp_path)
    assert "- MuJoCo 4.0.0 moves it otherwise than that of the papers (3.2 or before): contacts of " in text
    assert "(since 3.5) (cube-single)\n" in text
    assert cell(text, "cube-single DROL(16), physics first", "seeds") == "2"
    assert cell(text, "cube-single DROL(16), physics since MuJoCo 3.5", "seeds") == "1"


def test_fine_tuned_runs_stand_apart_and_show_the_switch(tmp_path, markdown):
    """Their score is not the paper's offline score, and an argument that older runs did not have sets no run apart."""
    online = write_run(tmp_path / "online", offline_steps=100, online_steps=200)
    old = write_run(tmp_path / "old")
    edit_config(write_run(tmp_path / "new", seed=1), lambda config: config["args"].update(balanced_sampling=False))
    edit_config(old, lambda config: config["args"].pop("balanced_sampling"))
    text = markdown(*(tmp_path / name for name in ("online", "old", "new")))
    assert cell(text, "cube-single DROL(16)", "seeds") == "2"
    assert cell(text, "cube-single DROL(16), fine-tuned", "score") == "70.0 ± -"  # after the switch
    assert cell(text, "cube-single DROL(16), fine-tuned", "updates") == "100 + 200 online"
    assert cell(text, "cube-single DROL(16), fine-tuned", "paper, mean of the group") == "-"
    figure = plot.draw(plot.runs.read([online]), "updates")
    (curves,) = (axes for axes in figure.axes if axes.get_title() == "cube-single")
    (switch,) = (line for line in curves.lines if line.get_label() == "from here on online")
    assert switch.get_xdata() == [0.1, 0.1]


# What scores and statistics are of


def test_an_evaluation_that_is_missing_is_not_replaced_by_an_earlier_one(tmp_path, markdown):
    gap = write_run(tmp_path / "gap", scores=(0, 90, 30, 60), offline_steps=400)
    rows = (gap / "eval.csv").read_text().splitlines(keepends=True)
    (gap / "eval.csv").write_text("".join(row for row in rows if not row.startswith("300,")))
    assert runs.read([gap]).runs[0].score == 75  # of 200 and 400
    assert "score of 2 of 3 evaluations: " in markdown(gap)


def test_the_score_of_a_fine_tuned_run_is_of_what_came_after_the_switch(tmp_path):
    short = write_run(tmp_path / "short", scores=(10, 20, 30, 90), online_steps=100)
    long = write_run(tmp_path / "long", scores=(10, 20, 30, 40, 50, 60), online_steps=300, seed=1)
    assert [run.score for run in runs.read([short, long]).runs] == [90, 50]


def test_a_task_with_more_seeds_weighs_no_more(tmp_path):
    for seed in range(5):
        write_run(tmp_path / f"a{seed}", "cube-single", seed=seed, scores=(90, 90, 90))
        if seed < 2:
            write_run(tmp_path / f"b{seed}", "scene", seed=seed, scores=(10, 10, 10))
    comparison = runs.read([tmp_path])
    common = plot.common_tasks(comparison)
    seeds = {task: [run.seed for run in of["DROL(16)"]] for task, of in common.items()}
    assert seeds == {"cube-single": [0, 1], "scene": [0, 1]}
    assert "a2 (not every task has its seed)" in "".join(plot.caption_of(comparison, "updates"))
    for folder in ("b0", "b1"):
        shutil.rmtree(tmp_path / folder)
    write_run(tmp_path / "c", "scene", seed=7)
    assert plot.common_tasks(runs.read([tmp_path])) == {}


def test_runs_are_found_at_any_depth(tmp_path):
    for seed, folder in enumerate(("single", "together/seed1", "sweep/method/seed2")):
        write_run(tmp_path / folder, seed=seed)
    assert len(runs.read([tmp_path]).runs) == 3


def test_what_makes_methods_unlike_is_said(tmp_path, markdown):
    write_run(tmp_path / "a", eval_interval=100)
    other = write_run(tmp_path / "b", "cube-single", "fql", eval_interval=150)
    edit_config(other, lambda config: (config["dataset"].update(sha256="ffffff00"), config.update(device="1 x gpu")))
    text = markdown(tmp_path)
    assert "unlike in cube-single: eval_interval 100 (DROL(16)), 150 (FQL)" in text
    assert "unlike in cube-single: data " in text and "(5fd3ce)" in text and "(ffffff)" in text
    assert re.search(r"minutes on unlike machines: .* x cpu .*\(cube-single\)", text) and "1 x gpu" in text


def test_minutes_after_the_last_row_that_can_be_read_are_unknown(tmp_path, markdown):
    run = write_run(tmp_path / "a")
    (run / "time.csv").write_text("step,time/seconds\n100,600\n")
    assert cell(markdown(run), "cube-single DROL(16)", "minutes to 50") == "unknown"


def test_candidates_are_compared_at_equal_settings(tmp_path):
    for name, task, k, tau, divergence in (
        ("a", 2, 1, 0.005, 0.0),
        ("b", 2, 4, 0.005, 0.03),
        ("c", 2, 4, 0.01, 0.06),
        ("d", 3, 4, 0.005, 0.03),  # a task with one K alone
        ("unfinished", 2, 8, 0.005, 0.03),
    ):
        scores = (99, 10, 20, 30) if name != "unfinished" else (99, 10)
        run = write_run(
            tmp_path / name, f"scene-task{task}", num_candidates=k, tau=tau, seed=5, offline_steps=400, scores=scores
        )
        (run / "train.csv").write_text(f"step,actor/bc_loss,actor/divergence\n100,9,9\n400,0.01,{divergence}\n")
    candidates.main(candidates.CandidateArgs(tmp_path, ("score", "pairwise_distance", "bc_loss")))
    assert (tmp_path / "candidates.csv").read_text().splitlines() == [
        "task,K,seed,updates,settings,score,pairwise_distance,bc_loss",
        "scene-task2,1,5,400,,20,0,0.01",
        f"scene-task2,4,5,400,,20,{np.sqrt(0.08):.5g},0.01",
        f"scene-task2,4,5,400,tau 0.01,20,{np.sqrt(0.16):.5g},0.01",
    ]
    assert (tmp_path / "candidates.png").stat().st_size > 10_000
    (tmp_path / "b" / "train.csv").write_text("step,actor/bc_loss\n400,0.01\n")
    with pytest.raises(UserError, match=r"train.csv: no actor/divergence; leave this run out"):
        candidates.read(tmp_path, ("pairwise_distance",))
    with pytest.raises(UserError, match="no task with finished DROL runs of several K"):
        candidates.read(tmp_path / "a", ("bc_loss",))


# What is committed


@pytest.fixture(scope="module")
def committed() -> set[pathlib.Path]:
    """Files of results/ but scripts, from the repository's root."""
    listed = subprocess.run(["git", "ls-files", "results"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("what is committed is known in a git checkout only")
    return {pathlib.Path(file) for file in listed.stdout.split("\n") if file and not file.endswith(".py")}


def made_of(committed: set[pathlib.Path]) -> set[pathlib.Path]:
    """Those of them that experiments/make.py makes."""
    figures = {file.with_suffix("") for file in committed if file.suffix == ".pdf"}
    raw = {file for file in committed if file.match("results/speed/*.csv")}
    return {file for file in committed if file.with_suffix("") in figures or file.stem == "table"} - raw


def test_every_committed_figure_and_table_is_made(committed, monkeypatch):
    """Each by a line of make.py; that they can be drawn takes longer (below)."""
    made, drawn = set(), set()
    for module in (plot, table):
        monkeypatch.setattr(module, "main", lambda args: made.add(args.out))
    monkeypatch.setattr(candidates, "main", lambda args: made.add(args.folder / "candidates"))
    monkeypatch.setattr(antmaze, "render", lambda folder, name: made.add(folder / name))
    for module in (accelerator, families, mechanism, physics, pixels, speed, toy):
        monkeypatch.setattr(module, "render", lambda path: drawn.add(path))
    make.main(make.MakeArgs())
    for file in (REPOSITORY / file for file in made_of(committed)):
        assert file.with_suffix("") in made or file.parent in drawn or file.with_suffix("") in drawn, file
    assert all((REPOSITORY / path).is_dir() or path.with_suffix(".csv").exists() for path in drawn)


@pytest.mark.slow(14)
def test_tables_are_current_and_figures_can_be_made_from_what_is_beside_them(committed, tmp_path, monkeypatch):
    """Their parts are not arranged, which takes as long as drawing them, and is seen in other figures above."""
    save = figures.save

    def save_as_it_lies(figure, *path_and_formats):
        figure.set_layout_engine(None)
        return save(figure, *path_and_formats)

    monkeypatch.setattr(figures, "save", save_as_it_lies)
    made = made_of(committed)
    for file in committed - made:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, tmp_path / file)
    make.main(make.MakeArgs(tmp_path / "results"))
    assert {file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()} == committed
    for file in made:
        again, before = (tmp_path / file).read_bytes(), (REPOSITORY / file).read_bytes()
        if file.suffix in (".md", ".csv", ".tex"):
            assert again == before, file
        else:
            assert again[:4] == before[:4], file
            assert len(again) > 5000


def test_what_a_maze_set_covers_is_counted_at_its_goals(pointmaze_file, tmp_path):
    antmaze.main(antmaze.AntmazeArgs(pointmaze_file, "pointmaze-medium-stitch", expert_episodes=1, out=tmp_path))
    goals = basics.read_csv(tmp_path / "pointmaze-medium-goals.csv")
    with np.load(pointmaze_file) as data:
        starts = data["qpos"][~data["terminals"]]
    for row in goals:
        distances = np.linalg.norm(starts - [row["goal_x"], row["goal_y"]], axis=1)
        assert (row["transitions"], row["at_goal"]) == (4000, (distances <= 1).sum())  # the point's tolerance
    assert goals["task"].tolist() == [1, 2, 3, 4, 5] and goals["at_goal"].sum() > 0
    path = basics.read_csv(tmp_path / "pointmaze-medium-trajectories.csv")
    assert path["episode"].max() == 3 and path["step"].max() == 1000
    assert (tmp_path / "pointmaze-medium.png").stat().st_size > 20_000


def test_data_is_fetched_without_training(pointmaze_file, capsys):
    fetch.main(RunArgs(env_id="pointmaze-medium", dataset_path=pointmaze_file))
    assert f"collected: 4 (official: 1000) episodes, seed 0 ({pointmaze_file}): 4,000" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be collected here"):
        fetch.main(RunArgs(env_id="pen-human", data_source="collect"))
