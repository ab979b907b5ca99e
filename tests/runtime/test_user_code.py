"""Objects of a user's Python code: found in its folder, gone from sys.path, named if wrong."""

import sys

import pytest

from lmsi_jax.errors import LmsiError
from lmsi_jax.runtime import user_code


def _write(folder, name="my_code", text="VALUE = 1\n"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return f"{folder}/{name}"


def _error(name, load=user_code.load, *arguments):
    with pytest.raises(LmsiError) as error:
        load(name, "FileTask.reader", *arguments)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_two_folders_may_have_modules_of_one_name_and_leave_nothing_behind(tmp_path):
    path, modules = [*sys.path], {*sys.modules}
    for number, folder in enumerate(("one", "two")):
        helper = _write(tmp_path / folder, "my_helper", f"NUMBER = {number}\n")
        place = _write(tmp_path / folder, "my_code", "from my_helper import NUMBER as VALUE\n")
        assert user_code.load(f"{place}:VALUE", "x") == number
        assert user_code.load(f"{helper}:NUMBER", "x") == number
    assert sys.path == path and not {"my_helper", "my_code"} & ({*sys.modules} - modules)
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_module_that_is_imported_already_does_not_hide_one_of_a_folder(tmp_path):
    place = _write(tmp_path / "one", "pytest", "VALUE = 'mine'\n")
    assert user_code.load(f"{place}:VALUE", "x") == "mine"
    assert sys.modules["pytest"] is pytest


def test_changed_code_is_loaded_anew_and_has_another_fingerprint(tmp_path):
    helper = _write(tmp_path / "one", "my_helper", "NUMBER = 1\n")
    name = (
        _write(tmp_path / "one", text="from my_helper import NUMBER\nVALUE = NUMBER\n") + ":VALUE"
    )
    before = user_code.fingerprint(name, "x")
    assert user_code.load(name, "x") == 1 and user_code.fingerprint(name, "x") == before
    _write(tmp_path / "one", "my_helper", "NUMBER = 2\n")
    assert user_code.load(name, "x") == 2 and user_code.fingerprint(name, "x") != before
    assert user_code.fingerprint(f"{helper}:NUMBER", "x") != before


def test_equal_code_in_another_folder_has_the_same_fingerprint(tmp_path):
    first, second = (_write(tmp_path / name) for name in ("one", "two"))
    assert user_code.fingerprint(f"{first}:VALUE", "x") == user_code.fingerprint(
        f"{second}:VALUE", "x"
    )


def test_an_object_may_state_its_fingerprint_itself(tmp_path):
    text = "class Model:\n    fingerprint = 'weights 7'\nTASK = Model()\n"
    assert user_code.fingerprint(_write(tmp_path, text=text) + ":TASK", "x") == "weights 7"


def test_packages_attributes_and_installed_modules_are_found(tmp_path):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("from . import inner\n")
    (tmp_path / "my_package" / "inner.py").write_text("class A:\n    b = 3\n")
    assert user_code.load(f"{tmp_path}/my_package.inner:A.b", "x") == 3
    assert user_code.load("operator:eq", "x")(1, 1)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("VALUE = 1\n", ":READ", "the module {0} has no 'READ'; it has VALUE"),
        ("import lmsi_no_such\n", ":VALUE", "the module {0} imports 'lmsi_no_such', which is not"),
        (
            "1 / 0\n",
            ":VALUE",
            "importing the module {0} fails at {0}.py, line 1: ZeroDivisionError",
        ),
        ("x = (\n", ":VALUE", "importing the module {0} fails at {0}.py, line 1: SyntaxError"),
        ("", "", "write 'module:object', as in 'my_task:TASK'"),
        ("", "2:VALUE", "there is no module 'my_code2' in the folder"),
    ],
)
def test_errors_name_the_setting_the_module_and_what_is_missing(tmp_path, text, name, message):
    place = _write(tmp_path, text=text)
    error = _error(place + name)
    assert error.startswith("FileTask.reader") and message.format(place) in error, error


def test_a_module_that_is_nowhere_is_named():
    assert "there is no module 'lmsi_no_such' beside the gin file or installed" in _error(
        "lmsi_no_such:f"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("read = 5\n", "is no function but int"),
        ("def read(text):\n    pass\n", "takes (text); it is called with 2 arguments"),
    ],
)
def test_a_function_of_other_arguments_is_named(tmp_path, text, message):
    name = _write(tmp_path, text=text) + ":read"
    error = _error(name, user_code.load_function, 2)
    assert error == f"FileTask.reader: {name} {message}"
