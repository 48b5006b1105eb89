"""`tightfit verify`: what is found out about a folder that a server signed."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.signed_results import KEY, OTHER_KEY, OTHER_PEM, PEM, signed_folder
from tightfit.cli import main
from tightfit.errors import InvalidInputError, UnsupportedError
from tightfit.verification import PROVENANCE_FILE, canonical, verify_folder
from tightfit_service.adapters.provenance.dsse import Ed25519Signer
from tightfit_service.application.trials import provenance as signing
from tightfit_service.domain.job import TeacherModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return signed_folder(tmp_path / "out")


def change_json(name: str, *path: str | int, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        at = content
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        (folder / name).write_text(json.dumps(content))

    return change


def change_payload(folder: Path) -> None:
    path = folder / PROVENANCE_FILE
    envelope = json.loads(path.read_text())
    payload = base64.b64decode(envelope["payload"]).replace(b'"seed":0', b'"seed":1')
    envelope["payload"] = base64.b64encode(payload).decode()
    path.write_text(json.dumps(envelope))


def sign_anew(folder: Path, content: object) -> None:
    payload = canonical(content)
    signed = Ed25519Signer(KEY).sign(signing.PAYLOAD_TYPE, payload)
    (folder / PROVENANCE_FILE).write_bytes(signed)


def test_a_folder_as_it_was_signed_is_verified(folder: Path) -> None:
    found = verify_folder(folder, trusted_keys=OTHER_PEM + PEM)
    assert found.mismatches == ()
    assert found.is_trusted
    assert found.covered == ("model.tflite", "recipe.json", "result.json")
    assert found.uncovered == ("report.html",)
    assert found.key_id == Ed25519Signer(KEY).key_id
    assert found.claims["job"]["name"] == "projects/p/jobs/j"


def test_without_a_key_it_is_said_that_nobody_vouches_for_the_key(folder: Path) -> None:
    found = verify_folder(folder)
    assert found.is_valid
    assert not found.is_trusted


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "model.tflite").write_bytes(b"another"), "model.tflite: has sha"),
        (lambda folder: (folder / "model.tflite").unlink(), "model.tflite: is missing"),
        (change_json("recipe.json", "seed", value=9), "recipe.json: differs"),
        (change_json("result.json", "best", "accuracy", value=0.999), "result.json: accuracy is"),
        (change_json("result.json", "budget", "max_ram_bytes", value=1), "result.json: budget is"),
        (change_json("result.json", "job", value=3), "result.json: is not a result"),
        (change_payload, "the signature does not fit"),
        (
            change_json(PROVENANCE_FILE, "signatures", 0, "public_key", value=OTHER_PEM.decode()),
            "the signature does not fit",
        ),
        (change_json(PROVENANCE_FILE, "signatures", value=[]), "the signature does not fit"),
        (change_json(PROVENANCE_FILE, "payloadType", value="text/plain"), "does not fit"),
    ],
)
def test_what_is_not_as_it_was_signed_is_named(
    change: Callable[[Path], None],
    says: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(folder)
    assert any(says in line for line in verify_folder(folder).mismatches)
    assert main(["verify", str(folder)]) == 3
    assert says in capsys.readouterr().out


TEACHERS = tuple(TeacherModel(name=name, digest=name * 64) for name in "ab")


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    return signed_folder(tmp_path / "taught", teachers=TEACHERS)


def test_teachers_are_shown_and_verified(taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((taught / "result.json").read_text())
    assert result["teacher_digests"] == ["a" * 64, "b" * 64]
    assert any("teachers" in step["parameters"] for step in result["best"]["recipe"]["steps"])
    assert main(["verify", str(taught)]) == 0
    assert f"taught by     {'b' * 64}" in capsys.readouterr().out


def teach_by(digest: str, name: str, *path: str) -> Callable[[Path], None]:
    """Replace the first teacher of a recipe's training, in recipe.json or inside of result.json."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        recipe = content
        for key in path:
            recipe = recipe[key]
        (training,) = (step for step in recipe["steps"] if step["pass_name"] == "recovery")
        training["parameters"]["teachers"][0] = digest
        (folder / name).write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (teach_by("c" * 64, "recipe.json"), "recipe.json: was trained with a teacher that was not"),
        (teach_by("c" * 64, "result.json", "best", "recipe"), "result.json: was trained with"),
        (change_json("result.json", "teacher_digests", 1, value="c" * 64), "teachers is"),
        (change_json("result.json", "teacher_digests", value=[]), "teachers is []"),
    ],
)
def test_a_teacher_that_was_not_signed_is_named(
    change: Callable[[Path], None], says: str, taught: Path
) -> None:
    change(taught)
    assert any(says in line for line in verify_folder(taught).mismatches)
    assert main(["verify", str(taught)]) == 3


def test_a_signed_recipe_may_not_name_other_teachers_than_its_statement(taught: Path) -> None:
    envelope = json.loads((taught / PROVENANCE_FILE).read_text())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["teachers"] = statement["predicate"]["teachers"][:1]
    sign_anew(taught, statement)
    found = verify_folder(taught, trusted_keys=PEM).mismatches
    assert [line.partition(":")[0] for line in found] == [
        "recipe.json",
        "result.json",
        "result.json",
    ]


def test_a_renamed_model_is_found_by_its_digest(folder: Path) -> None:
    (folder / "model.tflite").rename(folder / "digits.tflite")
    found = verify_folder(folder)
    assert found.is_valid
    assert "digits.tflite" in found.covered


def test_a_signature_by_a_key_that_is_not_trusted_counts_for_nothing(
    folder: Path, tmp_path: Path
) -> None:
    key = tmp_path / "other.pem"
    key.write_bytes(OTHER_PEM)
    assert not verify_folder(folder, trusted_keys=OTHER_PEM).is_valid
    assert main(["verify", str(folder), "--key", str(key)]) == 3


def test_the_key_counts_and_not_what_it_is_called(folder: Path) -> None:
    change_json(PROVENANCE_FILE, "signatures", 0, "keyid", value="0" * 64)(folder)
    assert verify_folder(folder, trusted_keys=PEM).is_valid


def test_a_statement_signed_by_another_is_seen_through(folder: Path) -> None:
    payload = base64.b64decode(json.loads((folder / PROVENANCE_FILE).read_text())["payload"])
    (folder / PROVENANCE_FILE).write_bytes(
        Ed25519Signer(OTHER_KEY).sign(signing.PAYLOAD_TYPE, payload)
    )
    assert verify_folder(folder).is_valid
    assert not verify_folder(folder, trusted_keys=PEM).is_valid


def test_what_is_claimed_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = folder.parent / "key.pem"
    key.write_bytes(PEM)
    assert main(["verify", str(folder), "--key", str(key)]) == 0
    out = capsys.readouterr().out
    for words in ("as signed model.tflite", "unsigned  report.html", "SUCCEEDED", "for board"):
        assert words in out
    assert out.rstrip().endswith("verified")
    assert main(["verify", str(folder), "--key", str(key), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["valid"]
    assert content["trusted"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"payload": 3}', b"\xff", b"[" * 100_000, b'{"signatures": [3]}'],
)
def test_a_statement_that_cannot_be_read_is_a_usage_error(content: bytes, folder: Path) -> None:
    (folder / PROVENANCE_FILE).write_bytes(content)
    with pytest.raises(InvalidInputError) as caught:
        verify_folder(folder)
    assert caught.value.remedy
    assert main(["verify", str(folder)]) == 2


@pytest.mark.parametrize("content", [[], {}, {"_type": "x"}, {"subject": [], "predicate": {}}])
def test_a_signed_statement_about_something_else_is_refused(content: object, folder: Path) -> None:
    sign_anew(folder, content)
    with pytest.raises(InvalidInputError, match="no statement about a compressed model"):
        verify_folder(folder)


def test_a_folder_that_was_not_signed_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no provenance") as caught:
        verify_folder(tmp_path)
    assert "compress -o" in caught.value.remedy


@pytest.mark.parametrize(
    "pem", [b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"]
)
def test_keys_that_cannot_be_read_are_a_usage_error(pem: bytes, folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="Ed25519"):
        verify_folder(folder, trusted_keys=pem)


def test_without_the_library_it_is_said_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(UnsupportedError, match="cryptography") as caught:
        verify_folder(folder)
    assert "tightfit[verify]" in caught.value.remedy


def test_client_and_server_spell_alike() -> None:
    data = {"ü": [1.0, 2.5, -0.0, 1e-9, 2**60], "a": (None, True, "\u2028")}
    assert canonical(data) == signing.canonical(data)
