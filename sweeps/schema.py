"""The JSON Schema of a spec's YAML file, with which editors complete and check it."""

from typing import Any, cast

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from prefsweep.sweeps.grid import as_tuple
from prefsweep.sweeps.spec import SweepSpec

DIALECT = "http://json-schema.org/draft-07/schema#"
SCHEMA_FILE = "sweep.schema.json"
"""Name of the schema's file, in the folder of the specs that refer to it."""
EDITOR_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""First line of a spec, by which editors find the schema."""

Node = dict[str, Any]


def spec_schema() -> Node:
    """The JSON Schema of a spec, with the description and default of every field."""
    schema = SweepSpec.model_json_schema(schema_generator=_OneOrMany)
    return {"$schema": DIALECT, **cast("Node", _without_titles(schema))}


class _OneOrMany(GenerateJsonSchema):
    """Allows a single value where the loader accepts one instead of a list."""

    def function_before_schema(
        self, schema: core_schema.BeforeValidatorFunctionSchema
    ) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        if schema["function"]["function"] is not as_tuple:
            return inner
        return {"anyOf": [inner["items"], inner]}


def _without_titles(node: Any, *, is_names: bool = False) -> Any:
    """Remove titles, which repeat the names, and move the length limits of lists to the lists."""
    if isinstance(node, list):
        return [_without_titles(each) for each in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    kept = dict(cast("Node", node))
    if not is_names:  # `title` may be the name of a field
        kept.pop("title", None)
        if "anyOf" in kept and (least := kept.pop("minLength", None)) is not None:
            forms = cast("list[Node]", kept["anyOf"])
            kept["anyOf"] = [
                {**form, "minItems": least} if form.get("type") == "array" else form
                for form in forms
            ]
    return {
        key: _without_titles(value, is_names=key in ("properties", "$defs"))
        for key, value in kept.items()
    }
