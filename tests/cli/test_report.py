"""`megafuser report` as a user runs it: its numbers against the dense reference, what it refuses, what it writes."""

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from megafuser.cli.main import main
from tests import report_page, report_reference
from tests.fused_case import SPECIALISTS, make_case, samples_of, write_config, write_jsonl
from tests.parallel.launch import run_commands
from tests.reference import DenseFusion
from tests.report_page import Page
from tests.report_reference import Tokens
from tests.stored_weights import below, huggingface_weights, stored_weights
from tests.tiny_models import SHARED_VOCABULARY

SEED = 1234
STEPS = {"warmup": 2, "joint": 2}
VALID = 5
HOSTILE = {
    "instruction": 'Say <script>alert("prompt")</script> and ${x}$',
    "response": '<script src="https://example.org/x.js">alert(1)</script> {{ 7 * 7 }} é𝄞',
}


def samples(domain: str) -> list[dict[str, Any]]:
    """Of one domain more than of the others, so that the mean over tokens is not the mean over domains."""
    own = samples_of(domain, VALID + 2 * (domain == "math"), offset=1000)
    return [HOSTILE, *own] if domain == "text" else own


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `config.yaml`, a run that went through both stages, and a report on each."""
    root = tmp_path_factory.mktemp("report")
    values = make_case(root, train=4) | {"device": "cpu"}
    for domain in SPECIALISTS:
        write_jsonl(root / "data" / f"{domain}.valid.jsonl", samples(domain))
    for stage, steps in STEPS.items():
        values[stage] = {"steps": steps, "samples_per_domain": 2, "lr": 3e-2 if stage == "warmup" else 3e-3}
    config = str(write_config(root / "config.yaml", values))
    for stage in STEPS:
        assert main([stage, "--config", config]) == 0
        assert report(root, root / "run" / stage, root / f"report_{stage}") == 0
    return root


def report(root: Path, checkpoint: Path, out: Path, *arguments: str) -> int:
    options = ["--config", str(root / "config.yaml"), "--checkpoint", str(checkpoint), "--out", str(out)]
    return main(["report", *options, *arguments])


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text("utf-8"))


def reference(root: Path, stage: str) -> DenseFusion:
    """The checkpoint in Hugging Face models, read by PyTorch's own loader."""
    stored = stored_weights(root / "run" / stage / f"step_{STEPS[stage]:06d}" / "weights")
    dense = DenseFusion({name: root / "hf" / name for name in SPECIALISTS}, below(stored, "gate."), SHARED_VOCABULARY)
    if stage == "joint":
        for name, model in dense.models.items():
            model.load_state_dict(huggingface_weights(below(stored, f"specialists.{name}."), model.config))
    return dense


def measured(dense: DenseFusion) -> dict[str, list[Tokens]]:
    """By domain, what each sample's tokens get."""
    with torch.no_grad():
        return {domain: [dense.sample(sample) for sample in samples(domain)] for domain in SPECIALISTS}


def expected(tokens: dict[str, list[Tokens]]) -> dict[str, Any]:
    """The fields of the domains, of `overall` and of `mean`."""
    compared = report_reference.comparisons(tokens, list(SPECIALISTS), seed=SEED)
    everything = [own for group in tokens.values() for own in group]

    def line(name: str, group: list[Tokens]) -> dict[str, Any]:
        return {
            **report_reference.means(group, list(SPECIALISTS)),
            **compared[name],
            "calibration": report_reference.calibration(group),
        }

    domains = {name: line(name, group) for name, group in tokens.items()}
    losses = [own["cross_entropy"] for own in domains.values()]
    mean = {key: sum(own[key] for own in losses) / len(losses) for key in ("fused", "uniform", "oracle")}
    mean["specialists"] = {name: sum(own["specialists"][name] for own in losses) / len(losses) for name in SPECIALISTS}
    return {
        "domains": domains,
        "overall": line("overall", everything),
        "mean": {"cross_entropy": mean, **compared["mean"]},
        "single_specialist": compared["single_specialist"],
    }


@pytest.fixture(scope="module")
def dense(trained: Path) -> Callable[[str], tuple[dict[str, list[Tokens]], dict[str, Any]]]:
    """By stage, what its tokens get, and what a report must say of them; made once, and only read."""

    @cache
    def of(stage: str) -> tuple[dict[str, list[Tokens]], dict[str, Any]]:
        tokens = measured(reference(trained, stage))
        return tokens, expected(tokens)

    return of


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_close(found[key], wanted[key], tolerance)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other, tolerance)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=tolerance)
    else:
        assert found == wanted


def check_tokens(found: dict[str, Any], differences: dict[tuple[str, int, int], float]) -> None:
    """The most helped and the most hurt, in order, and each with its own text."""
    ordered = sorted(differences.values())
    helped, hurt = ([token["difference"] for token in found[key]] for key in ("helped", "hurt"))
    assert helped == pytest.approx([value for value in ordered[:20] if value < 0], abs=1e-4)
    assert hurt == pytest.approx([value for value in ordered[::-1][:20] if value > 0], abs=1e-4)
    assert len(helped) == len(hurt) == 20, "this test would see no choice among the tokens"
    for token in [*found["helped"], *found["hurt"]]:
        number = int(token["sample"].rsplit(":", 1)[1]) - 1
        assert token["difference"] == pytest.approx(differences[token["domain"], number, token["token"]], abs=1e-4)
        sample = samples(token["domain"])[number]
        context = token["before"] + token["text"] + token["after"]
        assert sample is HOSTILE or context.strip() in sample["response"] + "</s>"
        assert token["prompt"].endswith("Assistant:")


def check_values(found: dict[str, Any], tokens: dict[str, list[Tokens]], wanted: dict[str, Any]) -> None:
    """Each token's losses and weights, and against whom it is held."""
    for token in [*found["helped"], *found["hurt"]]:
        own = tokens[token["domain"]][int(token["sample"].rsplit(":", 1)[1]) - 1]
        place = token["token"]
        alone, weights = (own[key][place].tolist() for key in ("specialists", "weights"))
        losses = {"fused": own["fused"][place].item(), "specialists": dict(zip(SPECIALISTS, alone, strict=True))}
        assert_close(token["cross_entropy"], losses)
        assert_close(token["gate"], dict(zip(SPECIALISTS, weights, strict=True)))
        assert token["best_specialist"] == wanted["domains"][token["domain"]]["best_specialist"]


@pytest.mark.parametrize("stage", list(STEPS))
def test_the_numbers_are_the_dense_references(trained: Path, dense: Callable, stage: str) -> None:
    found = read(trained / f"report_{stage}")
    tokens, wanted = dense(stage)
    assert_close(found["domains"], wanted["domains"])
    assert_close(found["overall"], wanted["overall"])
    assert_close(found["mean"], wanted["mean"])
    assert found["single_specialist"] == wanted["single_specialist"]
    assert found["bootstrap"] == {"level": 0.95, "resamples": 2000, "seed": SEED}
    check_tokens(found["tokens"], report_reference.differences(tokens))
    check_values(found["tokens"], tokens, wanted)
    assert (found["stage"], found["step"]) == (stage, STEPS[stage])
    spread = max(found["overall"]["gate"].values()) - min(found["overall"]["gate"].values())
    assert spread > 1e-2, "with a uniform gate this test would see no gate"


def test_max_samples_takes_the_first_of_each_domain(trained: Path, dense: Callable, tmp_path: Path) -> None:
    assert report(trained, trained / "run/warmup", tmp_path / "out", "--max-samples", "2") == 0
    tokens, _ = dense("warmup")
    wanted = expected({domain: own[:2] for domain, own in tokens.items()})
    assert_close(read(tmp_path / "out")["domains"], wanted["domains"])


def test_the_table_and_the_path_are_printed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(trained, trained / "run", tmp_path / "out", "--max-samples", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["domain", "samples", "tokens", *SPECIALISTS, "uniform", "fused", "oracle"]
    overall = read(tmp_path / "out")["overall"]["cross_entropy"]
    assert lines[5].split()[0] == "overall"
    assert f"{overall['oracle']:.4f}" == lines[5].split()[-1]
    assert lines[6] == f"report: {tmp_path / 'out' / 'report.html'}"
    verdict = read(tmp_path / "out")["verdict"]
    start = next(index for index, line in enumerate(lines) if line.startswith("verdict: "))
    assert lines[start] == f"verdict: {verdict['decision']}: {verdict['text']}"
    assert lines[start + 1 :] == [f"  {reason['points_to']}: {reason['text']}" for reason in verdict["reasons"]]
    assert verdict["decision"] != "go", "with one sample of each domain, nothing is sure"


def test_a_full_disk_does_not_cost_what_was_found(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("megafuser.report.command._write", lambda *_: (_ for _ in ()).throw(full))
    assert report(trained, trained / "run", tmp_path / "out", "--max-samples", "1") == 75
    said = capsys.readouterr()
    assert said.out.splitlines()[1].split()[0] == "domain" and "\nverdict: " in said.out and "report: " not in said.out
    assert f"error: {tmp_path / 'out'} cannot be written (No space left on device); make room and run " in said.err


def test_an_existing_out_is_kept_unless_told(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("old")
    (out / "notes.txt").write_text("mine")
    assert report(trained, trained / "run", out) == 2
    assert "exists" in capsys.readouterr().err
    assert (out / "report.json").read_text() == "old"
    assert not (out / "report.html").exists()
    assert report(trained, trained / "run", out, "--overwrite", "--max-samples", "1") == 0
    assert read(out)["stage"] == "joint"
    assert {path.name for path in out.iterdir()} == {"report.json", "report.html", "notes.txt"}


def test_a_damaged_checkpoint_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    for damaged, checkpoint in (
        (copy / "run/joint/step_000002", "joint"),
        (copy / "mcore/code", "warmup"),
    ):
        file = max((damaged / "weights").glob("*.distcp"), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[-200] ^= 1
        file.write_bytes(content)
        assert report(copy, copy / "run" / checkpoint, tmp_path / "out") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("megafuser: error: ")
        assert f"{damaged} (damaged: weights/{file.name})" in error
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "checkpoint", "says"),
    [
        (["specialists.0.name=prose"], "run", "of the specialists text, code, math, but the configuration has prose"),
        (["data.end_token=<unk>"], "run", "trained with end id 2, but this configuration gives 0"),
        ([], "mcore/text", "is a specialist; give a checkpoint of a run"),
        ([], "data", "no checkpoint at"),
        (["parallel.tensor=2"], "run", "needs a multiple of 2 processes"),
        (["--tensor", "2"], "run", "1 processes were started for --tensor 2; start a multiple of 2"),
        (["--tensor", "1", "parallel.pipeline=1"], "run", "both say the layout; leave one out"),
        (["--tensor", "1", "parallel={pipeline: 1}"], "run", "both say the layout; leave one out"),
        (["data.domains.text.valid=[missing.jsonl]"], "run", "missing.jsonl does not exist"),
        (
            ["--out", "/dev/null/out"],
            "run",
            "--out /dev/null/out cannot be written (/dev/null is no",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    checkpoint: str,
    says: str,
) -> None:
    assert report(trained, trained / checkpoint, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("megafuser: error: ")
    assert says in error
    assert list(tmp_path.iterdir()) == []


def test_a_moved_run_is_read_with_the_checkpoints_own_gate_and_specialists(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "elsewhere"))
    lost = [f"specialists.{index}.checkpoint=gone/{name}" for index, name in enumerate(SPECIALISTS)]
    for stage in STEPS:
        assert report(trained, run / stage, tmp_path / stage, "gate.hidden_size=8", *lost) == 0
        moved, original = read(tmp_path / stage), read(trained / f"report_{stage}")
        assert (moved["domains"], moved["overall"]) == (original["domains"], original["overall"])


def test_the_optimizer_and_recomputation_are_trainings_alone(trained: Path, tmp_path: Path) -> None:
    """What a CPU could not train with is no reason to refuse a report, nor is recomputation that divides no layers."""
    arguments = ["optimizer.precision_aware=true", "optimizer.offload_fraction=0.5"]
    arguments += ["memory.recompute=full", "memory.recompute_layers=3", "--max-samples", "1"]
    assert report(trained, trained / "run/joint", tmp_path / "out", *arguments) == 0


def test_another_template_than_in_training_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["specialists.1.template=plain", "--max-samples", "1"]
    assert report(trained, trained / "run", tmp_path / "out", *arguments) == 0
    assert "warning: specialist code was trained with another template" in capsys.readouterr().err


def test_without_a_configuration_it_is_the_checkpoints_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its run may have been moved, with the caches in it; other templates than the checkpoint's are a mistake then."""
    run = Path(shutil.copytree(trained / "run", tmp_path / "elsewhere"))
    shutil.rmtree(run / "data")
    for stage in STEPS:
        assert main(["report", "--checkpoint", str(run / stage), "--out", str(tmp_path / stage)]) == 0
        own, given = read(tmp_path / stage), read(trained / f"report_{stage}")
        assert (own["domains"], own["overall"]) == (given["domains"], given["overall"])
    assert list((run / "data").glob("math-valid-*"))
    capsys.readouterr()
    arguments = ["report", "--checkpoint", str(run), "--out", str(tmp_path / "out"), "specialists.1.template=plain"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"megafuser: error: specialist code was trained with another template (see {run}/joint/step_000002/config.yaml)"
        "; leave the override out, or give --config too"
    )


def test_a_layout_that_does_not_fit_the_processes_is_chosen_anew(trained: Path, tmp_path: Path) -> None:
    """Unless it is an override that asks for it."""
    values = (trained / "config.yaml").read_text("utf-8") + "parallel: {tensor: 2, pipeline: 2}\n"
    (tmp_path / "config.yaml").write_text(values)
    options = ["--checkpoint", str(trained / "run"), "--config", str(tmp_path / "config.yaml"), "--max-samples", "1"]
    assert main(["report", *options, "--out", str(tmp_path / "out")]) == 0


def test_the_page_is_self_contained_and_escapes_what_it_shows(trained: Path) -> None:
    source = (trained / "report_joint/report.html").read_text("utf-8")
    page = Page(source)
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.identifiers)
    assert len(page.identifiers) == len(set(page.identifiers))
    assert "http" not in source.replace("https://example.org/x.js", "")
    assert "<script" not in source
    assert HOSTILE["response"] + "</s>" in page.text
    assert HOSTILE["instruction"] in page.text
    for name in SPECIALISTS:
        assert f"{name}: the fused model is " in page.text
        assert f"<h3>{name}</h3>" in source
        assert f"{name}: weight 0." in source
    for value in read(trained / "report_joint")["overall"]["cross_entropy"]["specialists"].values():
        assert f"{value:.4f}" in page.text
    assert source.count("<svg") == 7
    assert read(trained / "report_joint")["verdict"]["text"] in page.text


@pytest.mark.parametrize("stage", list(STEPS))
def test_the_pages_numbers_are_the_dense_references(trained: Path, dense: Callable, stage: str) -> None:
    tokens, wanted = dense(stage)
    page = (trained / f"report_{stage}" / "report.html").read_text("utf-8")
    report_page.check_numbers(page, wanted)
    report_page.check_samples(page, tokens)


def test_training_adds_learning_rates_and_gradient_norms(trained: Path, tmp_path: Path) -> None:
    assert report(trained, trained / "run", tmp_path / "out", "--max-samples", "1", "--training") == 0
    source = (tmp_path / "out/report.html").read_text("utf-8")
    assert source.count("<svg") == 8
    assert {"learning rate", "gradient norm"} <= set(re.findall(r">([^<>]+)</text>", source))


def test_a_checkpoint_without_its_run_has_no_curves(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Path(shutil.copytree(trained / "run/joint/step_000002", tmp_path / "alone/joint/step_000002"))
    assert report(trained, alone, tmp_path / "out", "--max-samples", "1", "--training") == 0
    assert "warning: no training curves: there is no " in capsys.readouterr().err
    assert (tmp_path / "out/report.html").read_text("utf-8").count("<svg") == 5


TWO_RANKS = [
    ("joint", ["--tensor", "2", "parallel.sequence=true"]),
    ("warmup", ["--pipeline", "2"]),
    ("warmup", []),
]
# Here a joint checkpoint goes over a pipeline, too. With data parallelism besides, the excerpts are on ranks of the
# last stage that are not rank 0's.
FOUR_RANKS = [("joint", ["--tensor", "1", "--pipeline", "2"]), ("warmup", ["--tensor", "2", "--pipeline", "2"])]


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("ranks", "layouts"), [(2, TWO_RANKS), pytest.param(4, FOUR_RANKS, marks=pytest.mark.slow)], ids=["two", "four"]
)
def test_the_layout_does_not_matter(
    trained: Path, tmp_path: Path, ranks: int, layouts: list[tuple[str, list[str]]]
) -> None:
    # Narrower rows, so that every rank has several.
    narrow = ["--config", str(trained / "config.yaml"), "data.sequence_length=256"]
    outs = [tmp_path / f"out_{index}" for index in range(len(layouts))]
    commands = [
        ["report", *narrow, "--checkpoint", str(trained / "run" / stage), "--out", str(out), *arguments]
        for (stage, arguments), out in zip(layouts, outs, strict=True)
    ]
    run_commands(ranks, commands)
    for (stage, _), out in zip(layouts, outs, strict=True):
        wanted = trained / f"report_{stage}"
        assert_close(read(out), read(wanted), tolerance=1e-5)
        texts = [Page((path / "report.html").read_text("utf-8")).text for path in (out, wanted)]
        assert texts[0].count("</s>") == texts[1].count("</s>") >= 9, "every excerpt is whole"
